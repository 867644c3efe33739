import os
import resource
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from pera_mm.datasets.packed import TarShards
from pera_mm.datasets.reading import UnreadableImage, read_file
from pera_mm.errors import RunError, printable


@pytest.mark.parametrize(('name', 'shown'), [
    (b'plain.jpg', 'plain.jpg'),
    ('Bäume 森.jpg'.encode(), 'Bäume 森.jpg'),
    (b'bad_\xff\xfe.jpg', r'bad_\xff\xfe.jpg'),
    (b'two\nlines\x1b[2J.jpg', r'two\x0alines\x1b[2J.jpg'),
    ('next\u0085.jpg'.encode(), r'next\x85.jpg'),
])
def test_names_of_any_bytes_can_be_printed(name, shown):
    assert printable(os.fsdecode(name)) == shown
    shown.encode()


def test_surrogates_that_are_not_bytes():
    assert printable('\ud800x\udc41') == r'\ud800x\udc41'


LIMIT = 80


@contextmanager
def no_file_left() -> Iterator[None]:
    """Inside, the process has as many files open as it may: 80."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, limits[1]))
        with pytest.raises(OSError, match='Too many open files'):
            while True:
                opened.enter_context(open(os.devnull))
        yield


def test_too_many_open_files_are_no_fault_of_an_image(tmp_path: Path):
    image = tmp_path / 'a.png'
    Image.new('RGB', (8, 8)).save(image)
    (tmp_path / 'shards').mkdir()
    with tarfile.open(tmp_path / 'shards/0.tar', 'w') as tar:
        tar.add(image, 'a.png')
    shards = TarShards(str(tmp_path / 'shards'))
    sentence = (r'^a process has the 80 files open that it may have: allow more \(ulimit -n 4096 '
                r'in the shell that trains, or docker run --ulimit nofile=4096\), or use fewer '
                r'workers \(train_dataloader\.num_workers\)\.$')
    with no_file_left():
        for read in (lambda: shards.read(0), lambda: read_file(str(image))):
            with pytest.raises(RunError, match=sentence):
                read()
    assert shards.read(0) == read_file(str(image)) == image.read_bytes()
    with pytest.raises(UnreadableImage, match='No such file'):
        read_file(str(tmp_path / 'none.png'))
