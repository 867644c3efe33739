"""What is typed after --cfg-options is what arrives in the config."""

import argparse
import math

import pytest
from mmengine.config import DictAction
from programs import run

from pera_mm.options import (
    add_cfg_options,
    device,
    number_of_at_least,
    positive_number,
    whole_number,
)


def parse(*texts):
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(['--cfg-options', *texts]).cfg_options


@pytest.mark.parametrize('text', [
    '/data/my tiles', '/data/my  two', ' /data/lead', '/data/a,b', '/data/x, y', 'a,b', '5,a',
    '/data/[x]', '/data/[x, y', '/data/(copy).jpg', '(copy).jpg', '[x].jpg', '/data/a=b', '/ünï',
    "O'Brien", "it's, here", '"open', '007', '1_000', '0x10', '1e', '$HOME/x', 'none', 'a b', '',
    'dict(a=1)', '-', 'Infinity'])
def test_a_text_stays_as_typed(text):
    assert parse(f'key={text}') == dict(key=text)


@pytest.mark.parametrize(('text', 'value'), [
    ('5', 5), ('-1', -1), ('+5', 5), ('1e-3', 1e-3), ('1E5', 1e5), ('.5', .5), ('5.', 5.),
    ('0', 0), ('inf', math.inf), ('None', None), ('True', True), ('false', False),
    ('"5"', '5'), ("'/data/x y'", '/data/x y'), ('"~/x"', '~/x'),
    ('[1,2]', [1, 2]), ('(1, 2)', (1, 2)), ('(1)', (1,)), ('()', ()), ('[]', []),
    ('1,2,3', [1, 2, 3]), ('1, 2', [1, 2]), ('1,', [1]), ('(1,2),(3,4)', [(1, 2), (3, 4)]),
    ("'a','b'", ['a', 'b']), ('[a, b c]', ['a', 'b c']), ('[/a b,/c d]', ['/a b', '/c d']),
    ("['a, b', c]", ['a, b', 'c']), ("[O'Brien, x]", ["O'Brien", 'x']),
    ('[(1, 2, 3), [a, b], c]', [(1, 2, 3), ['a', 'b'], 'c']), ('[None,true]', [None, True]),
    ("{'a': [1, 2]}", {'a': [1, 2]}), ('[{"a": 1}, b]', [{'a': 1}, 'b'])])
def test_values_of_python_and_of_mmengine(text, value):
    found = parse(f'key={text}')['key']
    assert found == value and type(found) is type(value)


def test_the_home_folder_is_put_in_for_a_tilde_at_the_start(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert parse('a=~/my tiles', 'b=[~/x, y~]', 'c=x~', 'd=~') == dict(
        a='/home/me/my tiles', b=['/home/me/x', 'y~'], c='x~', d='/home/me')


@pytest.mark.parametrize(('text', 'reason'), [
    ('[1,2', 'the brackets of [1,2 do not match'), ('(1]', 'the brackets of (1] do not match'),
    ('[1,2]]', 'the brackets of [1,2]] do not match'),
    ('{a: 1}', '{a: 1} is not a dict as Python writes it'),
    ('[{a}]', '{a} is not a dict as Python')])
def test_broken_brackets_are_a_usage_error(text, reason, capsys):
    with pytest.raises(SystemExit, match='2'):
        parse(f'key={text}')
    assert f'--cfg-options: key: {reason}' in capsys.readouterr().err


def test_later_options_are_added_to_earlier_ones():
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    options = parser.parse_args(['--cfg-options', 'a=1', '--cfg-options', 'a=2', 'b=3'])
    assert options.cfg_options == dict(a=2, b=3)
    assert parser.parse_args([]).cfg_options == {}


@pytest.mark.parametrize('text', ['lr', '=5'])
def test_an_option_needs_a_key_and_a_value(text, capsys):
    with pytest.raises(SystemExit):
        parse(text)
    assert f'expected KEY=VALUE, got {text!r}' in capsys.readouterr().err


def test_mmengines_own_action_reads_texts_once_pera_mm_is_imported():
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    assert parser.parse_args(['--cfg-options', 'a=/my tiles', 'b=1,2']).cfg_options == dict(
        a='/my tiles', b=[1, 2])


TOOLBOX = """
import argparse
from mmengine.config import Config, DictAction
parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('--work-dir')
parser.add_argument('--cfg-options', nargs='+', action=DictAction)
args = parser.parse_args()
assert args.cfg_options['a'] == '/mytiles'
cfg = Config.fromfile(args.config)
cfg.merge_from_dict(args.cfg_options)
print(cfg.to_dict())
"""


@pytest.mark.slow
def test_a_toolbox_that_parsed_before_gets_the_texts_as_typed(tmp_path):
    """As mmseg's train.py under ``mim train``, whose config imports pera_mm."""
    (tmp_path / 'train.py').write_text(TOOLBOX)
    (tmp_path / 'config.py').write_text("custom_imports = dict(imports=['pera_mm'])\na = 'x'\n")
    said = run(tmp_path / 'train.py', tmp_path / 'config.py', '--cfg-options', 'a=/my tiles',
               'b=/x, y', 'c=1,2', 'd=5', '--work-dir', 'b=3').output
    expected = dict(a='/my tiles', b='/x, y', c=[1, 2], d=5)
    assert str(expected)[1:-1] in said


@pytest.mark.parametrize('text', ['0', '-1', '1.5', '1e3', 'two', '', ' '])
def test_a_whole_number_has_a_least_value(text):
    assert whole_number(1)('1') == 1 and whole_number(0)('0') == 0
    with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1, got '{text}'"):
        whole_number(1)(text)


@pytest.mark.parametrize('text', ['0', '-1e-3', 'nan', 'inf', 'fast', ''])
def test_a_positive_number_is_finite(text):
    assert positive_number('1e-3') == 1e-3
    with pytest.raises(argparse.ArgumentTypeError, match=f"above 0, got '{text}'"):
        positive_number(text)


@pytest.mark.parametrize('text', ['-1e-3', 'nan', 'inf', 'fast', ''])
def test_a_number_of_at_least_0_is_finite(text):
    assert number_of_at_least(0)('0') == 0 and number_of_at_least(0)('1e-3') == 1e-3
    with pytest.raises(argparse.ArgumentTypeError, match=f"at least 0, got '{text}'"):
        number_of_at_least(0)(text)


@pytest.mark.parametrize('text', ['gpu', 'cuda:99', ''])
def test_a_device_is_one_of_this_machine(text):
    assert device('cpu') == 'cpu'
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}' cannot be used here [(]"):
        device(text)
