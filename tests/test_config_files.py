"""What is wrong in a config file is one sentence with the file and the line."""

import pytest
from mmengine.config import Config

from pera_mm.errors import UserError
from pera_mm.launch import read_config


@pytest.fixture
def written(tmp_path):
    """Write files and read the last."""

    def _written(encoding='utf-8', **files):
        for name, text in files.items():
            stem, _, suffix = name.partition('__')
            path = tmp_path / f'{stem}.{suffix or "py"}'
            path.write_bytes(text.encode(encoding))
        return read_config(str(path))

    return _written


@pytest.mark.parametrize(('files', 'sentence'), [
    (dict(a='\nmodel = dict(\n'),
     "a.py cannot be read as a config: SyntaxError: '(' was never closed in line 2; correct it."),
    (dict(a='\n\nx = weight\n', b="_base_ = 'a.py'\n"),
     "a.py cannot be read as a config: NameError: name 'weight' is not defined in line 3; "),
    (dict(a='x = 1 / 0\n'), 'ZeroDivisionError: division by zero in line 1; correct it.'),
    (dict(a="_base_ = 'none.py'\n", b="_base_ = 'a.py'\n"),
     'a.py names the base {here}/none.py, which does not exist: correct _base_.'),
    (dict(a='', b="_base_ = 'a.py'\n", a2='', a__py="_base_ = 'b.py'\n"),
     'the bases of {here}/a.py are a circle ({here}/a.py, {here}/b.py): correct _base_.'),
    (dict(a="_base_ = 'a.py'\n"), 'a.py are a circle'),
    (dict(a__json='{"model": '), 'a.json cannot be read as a config: JSONDecodeError: Expecting '),
    (dict(a__png='x'), 'a.png cannot be read as a config: give a .py, .yaml or .json file.'),
    (dict(a='x = 1\n', b='x = 2\n', c="_base_ = ['a.py', 'b.py']\n"),
     'c.py cannot be read as a config: KeyError: "Duplicate key is not allowed among bases.'),
    (dict(a='x = 1\n', b="_base_ = 'a.py'\nx = dict(y=1)\n"),
     'b.py cannot be read as a config: TypeError: x='),
])
def test_a_mistake_in_a_file(written, tmp_path, files, sentence):
    with pytest.raises(UserError) as stop:
        written(**files)
    assert sentence.format(here=tmp_path) in str(stop.value)
    assert '\n' not in str(stop.value)


def test_encodings(written):
    assert written('utf-8-sig', a="x = 'é'\n").x == 'é'
    assert written('utf-8-sig', a="x = 'é'\n", b="_base_ = 'a.py'\n").x == 'é'
    for encoding in ('utf-16', 'latin-1'):
        with pytest.raises(UserError, match='a.py cannot be read .* not a text in UTF-8; save'):
            written(encoding, a="x = 'é'\n")


def test_nothing_stays_of_it_after_reading(written, tmp_path):
    written(a='x = 1\n')
    (tmp_path / 'a.py').write_text('x = 1\n', encoding='utf-8-sig')
    with pytest.raises(SyntaxError, match='U\\+FEFF'):
        Config.fromfile(tmp_path / 'a.py')
    with pytest.raises(TypeError, match='must be a mapping'):  # not from reading the file
        written(a='custom_imports = 5\n')
