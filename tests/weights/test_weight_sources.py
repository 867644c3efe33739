"""Every file of weights that our configs name comes with the command that makes it."""

import re
from pathlib import Path

import pytest

from pera_mm.weights.loading import load_checkpoint
from pera_mm.weights.sources import REMEDIES, how_to_make

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"(?:checkpoint|load_from)\s*=\s*'([^']+)'")


def test_our_configs_name_these_files_and_no_others():
    texts = (file.read_text() for file in (ROOT / 'configs').rglob('*.py'))
    assert {name for text in texts for name in NAMED.findall(text)} == REMEDIES.keys()


@pytest.mark.parametrize('name, remedy', REMEDIES.items())
def test_the_command_makes_this_file_from_one_that_has_a_command(name: str, remedy: str):
    command = re.search('python (.*?)"', remedy)
    if command is None:
        return
    tool, source, target, *options = re.sub(r'\$\(cat (\S+)\)', r'\1', command[1]).split()
    assert (ROOT / tool).is_file() and target == name and options == ['--to', 'backbone']
    if source in REMEDIES:
        return
    config = Path(re.search(r'configs/\S+\.py', remedy)[0])
    assert config.stem == Path(source).parent.name and (ROOT / config).is_file()


def test_the_file_may_be_anywhere_and_others_are_the_users():
    assert how_to_make('/data/me/work_dirs/demo/iter_400.pth') == 'make it with "make demo"'
    assert how_to_make('work_dirs/mine/iter_400.pth') is None


def test_a_missing_download_says_where_it_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r'params: download it by the link in .*PerA \('):
        load_checkpoint(tmp_path / 'checkpoints/pera_ViTG161024.params')
