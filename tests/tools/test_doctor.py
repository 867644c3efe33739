"""The doctor: what can run here, said in sentences and by the exit code."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from programs import Done, run

import pera_mm

DOCTOR = Path(__file__).parents[2] / 'tools' / 'doctor.py'


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location('doctor', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def doctor() -> ModuleType:
    return load(DOCTOR)


def run_with(stubs: dict[str, str], folder: Path, code: int) -> Done:
    """Run the doctor where some packages are replaced by broken ones."""
    for name, source in stubs.items():
        (folder / name).mkdir()
        (folder / name / '__init__.py').write_text(source)
    return run(DOCTOR, code=code, PYTHONPATH=str(folder), COLUMNS='200')


@pytest.mark.slow
def test_a_broken_mmengine_is_named_with_what_to_do(tmp_path: Path):
    result = run_with(dict(mmengine="raise ImportError('wheel for another Python')"), tmp_path,
                      code=1)
    sentence = r'^BROKEN: mmengine is installed but cannot be imported \(ImportError: wheel for '
    assert re.search(sentence + r'another Python\): install it anew.*make env', result.stdout, re.M)
    sentence = r'^BROKEN: pera_mm \(and \d more, .*\) cannot be imported for the same reason as'
    assert re.search(sentence, result.stdout, re.M)
    assert re.search(r'^BROKEN: No config can be loaded', result.stdout, re.M)
    assert 'Pre-training cannot run here yet' in result.stdout
    assert re.search(r'torch +│ ok +│ \d', result.stdout)
    assert re.search(r'open files +│ (ok|no) +│ (\d+|no limit)', result.stdout)
    assert 'Traceback' not in result.stdout + result.stderr


def test_without_rich_there_is_still_a_sentence(tmp_path: Path):
    result = run_with(dict(rich="raise ImportError('no rich')"), tmp_path, code=1)
    assert 'rich is not installed' in result.stderr and 'make env' in result.stderr


def test_help_is_shown_and_unknown_options_are_refused_without_a_check():
    result = run(DOCTOR, '--help')
    assert 'usage: doctor.py' in result.stdout and 'Exit code 0: pre-training' in result.stdout
    assert 'Environment' not in result.output
    assert 'unrecognized arguments: --fast' in run(DOCTOR, '--fast', code=2).stderr


@pytest.mark.slow
def test_here_pre_training_can_run_and_a_broken_optional_package_is_a_note(tmp_path: Path):
    result = run_with(dict(opencd="raise RuntimeError('half installed')"), tmp_path, code=0)
    assert 'Pre-training with our configs can run here.' in result.stdout
    assert 'note: opencd is installed but cannot be imported (RuntimeError' in result.stdout
    configs = DOCTOR.parents[1] / 'configs'
    names = [str(file.relative_to(configs)) for file in configs.rglob('*.py')]
    assert [name for name in names if '_base_' not in name and name not in result.stdout] == []


# -- packages -------------------------------------------------------------------------------


def test_missing_and_incomplete_packages_are_told_apart(
    doctor: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'lacking.py').write_text('import no_such_module')
    missing = doctor.check_package(doctor.Package('no_such_package', False, 'curves'), {})
    assert missing.problem.startswith('no_such_package is not installed (curves): run "make env"')
    lacking = doctor.check_package(doctor.Package('lacking', True, 'everything'), {})
    assert lacking.problem.startswith('lacking needs no_such_module, which is not installed')
    assert lacking.required and 'BROKEN' in lacking.mark and 'BROKEN' not in missing.mark
    assert doctor.check_package(doctor.Package('numpy', True, 'everything'), {}).problem == ''


def test_the_operators_are_bridged_or_compiled(doctor: ModuleType):
    found = doctor.check_operators()
    assert found.problem == ''
    assert re.match('bridged over torchvision|compiled with mmcv', found.detail)


def test_small_shared_memory_is_a_note(doctor: ModuleType, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch):
    size = shutil.disk_usage(tmp_path).total
    assert doctor.check_shared_memory(tmp_path / 'none').problem == ''
    monkeypatch.setattr(doctor, 'SHARED_MEMORY', size)
    assert doctor.check_shared_memory(tmp_path).problem == ''
    monkeypatch.setattr(doctor, 'SHARED_MEMORY', size + 1)
    found = doctor.check_shared_memory(tmp_path)
    assert found.problem.startswith(f'{tmp_path} has only {size / 2**20:.0f} MB, too little')
    assert not found.required


def test_few_open_files_are_a_note(doctor: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def check(soft: int, hard: int):
        monkeypatch.setattr(doctor.resource, 'getrlimit', lambda kind: (soft, hard))
        found = doctor.check_open_files()
        assert not found.required and found.name == 'open files'
        return found.detail, found.problem

    assert check(1024, 1024) == ('1024', '') and check(-1, -1) == ('no limit', '')
    said = ('A process may have only 256 files open, too few for tar shards (256 in each '
            'data-loader worker) or many workers: {}; docker run --ulimit nofile=1024.')
    here = said.format('ulimit -n 1024 in the shell that trains')
    assert check(256, 4096) == check(256, -1) == ('256', here)
    assert check(256, 512) == ('256', said.format(
        'ask the administrator for 1024 (nofile in /etc/security/limits.conf)'))


# -- configs --------------------------------------------------------------------------------

GOOD = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['pera_mm'], allow_failed_imports=False)
train_dataloader = dict(dataset=dict(type='pera_mm.UnlabeledImages', source='data/none'))
default_hooks = dict(teacher=dict(type='pera_mm.TeacherHook'))
"""


@pytest.fixture
def check(doctor: ModuleType, tmp_path: Path):
    def check(text: str, broken: set[str] = frozenset()):
        (tmp_path / 'a.py').write_text(text)
        return doctor.check_config(tmp_path / 'a.py', 'a.py', broken)

    return check


def test_a_good_config_shows_its_data(check):
    found = check(GOOD)
    assert found.detail == 'data/none (not here)'
    assert not found.required
    assert found.problem.startswith('a.py finds no images: put or link them where it looks')


def test_data_that_is_here_is_shown_so(check, tmp_path: Path):
    assert check(GOOD.replace('data/none', str(tmp_path))).detail == str(tmp_path)


def test_a_type_may_be_a_full_path(check):
    path = 'pera_mm.engine.hooks.teacher.TeacherHook'
    assert 'does not have' not in check(GOOD.replace('pera_mm.TeacherHook', path)).problem


def test_an_unknown_type_of_ours_is_named(check):
    found = check(GOOD.replace('TeacherHook', 'TaecherHook'))
    assert found.required
    assert found.problem.startswith('a.py names pera_mm.TaecherHook, which pera_mm does not have')


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('model = dict(', 'SyntaxError'),
        ("_base_ = ['nowhere.py']", 'nowhere.py'),
        ("custom_imports = dict(imports=['no_such_module'])", 'no_such_module'),
    ],
)
def test_a_config_that_does_not_load_says_why(check, text: str, reason: str):
    found = check(text)
    assert found.required and found.problem.startswith('a.py cannot be loaded')
    assert reason in found.problem and '\n' not in found.problem


@pytest.mark.parametrize(
    ('text', 'package', 'required'),
    [
        ("default_scope = 'mmseg'", 'mmseg', False),
        (GOOD + "model = dict(head=[dict(type='mmdet.RPNHead')])", 'mmdet', False),
        (GOOD + "strategy = dict(type='DeepSpeedStrategy')", 'deepspeed', False),
        (GOOD + "vis = [dict(type='TensorboardVisBackend')]", 'tensorboard', True),
        (GOOD, 'mmpretrain', True),
    ],
)
def test_a_config_needs_the_packages_it_names(check, text: str, package: str, required: bool):
    found = check(text, {package})
    assert (found.problem, found.required) == (f'a.py needs {package}, see above.', required)


def test_configs_are_found_in_the_repository_and_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / 'tools').mkdir()
    lone = load(Path(shutil.copy(DOCTOR, tmp_path / 'tools')))
    monkeypatch.setattr(pera_mm, '__file__', str(tmp_path / 'pera_mm' / '__init__.py'))
    assert lone.config_folder() is None
    assert lone.check_configs(set())[0].problem.startswith('There are no configs')
    packaged = tmp_path / 'pera_mm' / '.mim' / 'configs'
    packaged.mkdir(parents=True)
    assert lone.config_folder() == packaged
    (tmp_path / 'configs' / '_base_').mkdir(parents=True)
    (tmp_path / 'configs' / '_base_' / 'runtime.py').write_text(GOOD)
    (tmp_path / 'configs' / 'a.py').write_text("_base_ = '_base_/runtime.py'")
    assert lone.config_folder() == tmp_path / 'configs'
    assert [found.name for found in lone.check_configs(set())] == ['a.py']


def test_the_same_problem_of_many_configs_is_one_sentence(doctor: ModuleType):
    findings = [doctor.Finding(name, '', f'{name} finds no images.') for name in ('a', 'b', 'c')]
    findings += [doctor.Finding('d', '', 'd is missing.', True), doctor.Finding('e', 'fine')]
    assert doctor.problem_sentences(findings) == [
        'BROKEN: d is missing.', 'note: a (and 2 more, see the table) finds no images.']
