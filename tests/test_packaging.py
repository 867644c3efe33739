"""What an installed pera_mm brings along, and that its requirements agree with each other."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import pera_mm

ROOT = Path(__file__).parents[1]
SOURCES = ('pera_mm', 'configs', 'tools', 'requirements', 'setup.py', 'pyproject.toml',
           'model-index.yml', 'MANIFEST.in', 'LICENSE', 'CHANGELOG.md')


@pytest.fixture(scope='module')
def source_tree(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing behind."""
    tree = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '.mim', 'work_dirs')
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


def build(tree, *command):
    done = subprocess.run([sys.executable, 'setup.py', '--quiet', *command], cwd=tree,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}


def requirements(name):
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    lines = [line.partition('#')[0].strip() for line in lines]
    return [Requirement(line) for line in lines if line and not line.startswith('-r')]


def test_wheel_has_every_module_config_and_tool(source_tree, tmp_path):
    build(source_tree, 'build_py', '--build-lib', str(tmp_path))
    assert {path for path in files(tmp_path / 'pera_mm') if not path.startswith('.mim')} == \
        files(source_tree / 'pera_mm')
    for name in ('configs', 'tools'):
        assert files(tmp_path / 'pera_mm/.mim' / name) == files(source_tree / name)
    assert (tmp_path / 'pera_mm/.mim/model-index.yml').is_file()


@pytest.mark.slow
def test_wheel_built_from_the_sdist_has_it_too(source_tree, tmp_path):
    build(source_tree, 'sdist', '--formats', 'zip', '--dist-dir', str(tmp_path))
    shutil.unpack_archive(next(tmp_path.glob('*.zip')), tmp_path)
    unpacked = next(path for path in tmp_path.iterdir() if path.is_dir())
    build(unpacked, 'bdist_wheel', '--dist-dir', str(tmp_path))
    names = set(zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist())
    assert {f'pera_mm/.mim/configs/{path}' for path in files(ROOT / 'configs')} <= names
    assert {'pera_mm/.mim/tools/train.py', 'pera_mm/.mim/tools/dist_train.sh'} <= names


def test_installed_package_reaches_configs_and_tools():
    try:
        assert version('pera_mm') == pera_mm.__version__
    except PackageNotFoundError:
        pytest.skip('pera_mm is on the path but not installed: run `pip install -e .`.')
    mim = Path(pera_mm.__file__).parent / '.mim'
    assert (mim / 'configs/_base_/runtime.py').is_file()
    assert (mim / 'tools/train.py').is_file()
    assert (mim / 'model-index.yml').is_file()


def test_model_index_names_existing_files():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index['Import']
    for path in index['Import']:
        metafile = yaml.safe_load((ROOT / path).read_text())
        named = [model['Config'] for model in metafile['Models']]
        named += [collection['README'] for collection in metafile['Collections']]
        missing = [path for path in named if not (ROOT / path).is_file()]
        assert not missing, f'{path} names {missing}, which do not exist.'


def test_lock_file_satisfies_every_requirement():
    locked = {}
    for pin in requirements('lock.txt'):
        if pin.marker is None or pin.marker.evaluate():
            locked[pin.name] = re.fullmatch('==(.+)', str(pin.specifier))[1]
    for name in ('runtime.txt', 'mminstall.txt', 'optional.txt', 'collect.txt', 'tests.txt',
                 'lock.in'):
        for needed in requirements(name):
            assert needed.name in locked, f'{needed.name} of {name} is not in lock.txt: make lock'
            assert locked[needed.name] in needed.specifier, f'{needed} of {name}: make lock'
    assert 'opencv-python' not in locked, 'it needs libGL; the headless build stands in for it'
