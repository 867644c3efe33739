import os

import pytest

from pera_mm.errors import printable


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
