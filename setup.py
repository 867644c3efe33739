"""Packaging of pera_mm: the code, plus configs and tools where mim looks for them."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Puts configs, tools and model-index.yml into ``pera_mm/.mim``.

    Copied into the wheel; in an editable install linked, so that edits show at once.
    """

    def run(self) -> None:
        """Build as usual, then add the content for mim."""
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        mim = package / 'pera_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if self.editable_mode:
                (mim / name).symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, mim / name)


def requirements(name: str) -> list[str]:
    """The requirements of ``requirements/<name>.txt``, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


def version() -> str:
    """``__version__`` as the package states it, read without importing it."""
    text = (ROOT / 'pera_mm' / '__init__.py').read_text()
    return re.findall(r"^__version__ = '(.+)'$", text, re.MULTILINE)[0]


extras = {name: requirements(file) for name, file in
          [('mim', 'mminstall'), ('optional', 'optional'), ('collect', 'collect'),
           ('geo', 'geo'), ('onnx', 'onnx'), ('index', 'index'), ('tests', 'tests')]}
setup(
    name='pera_mm',
    version=version(),
    description='PerA self-supervised pre-training for remote-sensing images, on OpenMMLab',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['pera_mm', 'pera_mm.*']),
    package_data={'pera_mm.collect.sample': ['continents.geojson']},
    install_requires=requirements('runtime'),
    extras_require=extras | {'all': sum(extras.values(), [])},
    cmdclass={'build_py': BuildWithMim},
)
