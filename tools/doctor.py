"""Check what can run here: packages, operators, devices and each config, and say what to do.

    python tools/doctor.py

Exit code 0: pre-training with our configs can run. 1: something that it needs is broken.
"""

import argparse
import importlib
import platform
import resource
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:
    sys.exit('rich is not installed, and probably much else: run "make env" or "pip install -e .".')

ENVIRONMENT = 'run "make env", or "pip install -e .[all]" in your own environment'


class Package(NamedTuple):
    """A package by its import name."""

    name: str
    required: bool
    purpose: str
    remedy: str = ENVIRONMENT
    part: str = ''  # a submodule that fails in a half-broken installation


# In the order of import: pera_mm supplies what mmcv.ops and the toolboxes import.
PACKAGES = (
    Package('torch', True, 'everything'),
    Package('torchvision', True, 'color, nms, RoIAlign'),
    Package('numpy', True, 'everything'),
    Package('cv2', True, 'reading and cropping images'),
    Package('PIL', True, 'reading images'),
    Package('mmengine', True, 'runner, configs'),
    Package('pera_mm', True, 'this project'),
    Package('mmcv', True, 'transforms'),
    Package('mmpretrain', True, 'ViT, classification', part='models'),
    Package('mmseg', False, 'segmentation, change detection', part='models'),
    Package('mmdet', False, 'detection', part='models'),
    Package(
        'opencd',
        False,
        'change detection in Open-CD',
        'only if you want Open-CD itself: pip install einops git+https://github.com/likyoo/open-cd',
    ),
    Package('rasterio', False, 'GeoTIFF'),
    Package('tensorboard', False, 'curves'),
    Package('sklearn', False, 'linear probe'),
    Package('matplotlib', False, 'figures'),
    *(Package(name, False, 'collecting data sets')
      for name in ('httpx2', 'imagehash', 'lmdb', 'pandas', 'shapely')),
    *(Package(name, False, 'polygons, boxes, embeddings and labels in map files')
      for name in ('geopandas', 'pyarrow', 'pyogrio', 'pyproj')),
    *(Package(name, False, 'tools/export.py') for name in ('onnx', 'onnxruntime', 'onnxscript')),
    Package(
        'deepspeed',
        False,
        'the DeepSpeed configs',
        'only for those: pip install deepspeed==0.17.6',
    ),
)
# Parts of a config and the package that they need in addition.
NEEDED_BY = {
    'TensorboardVisBackend': 'tensorboard',
    'pera_mm.ProbeHook': 'sklearn',
    'DeepSpeedStrategy': 'deepspeed',
}
SHARED_MEMORY = 2**30  # bytes; less is a container's default, not a choice
# A worker keeps up to 256 tar shards open, the main process several files for each image that the
# workers have ready: 1024, the default of most systems, is enough for the configs.
OPEN_FILES = 1024
DOWNSTREAM = {'mmseg', 'mmdet', 'opencd', 'deepspeed'}
NOT_HERE = ' (not here)'  # behind a path in the table


class Finding(NamedTuple):
    """The result of one check: no problem, or what is wrong and what to do."""

    name: str
    detail: str
    problem: str = ''
    required: bool = False

    @property
    def mark(self) -> str:
        """A sign for the table."""
        if not self.problem:
            return '[green]ok[/]'
        return '[red]BROKEN[/]' if self.required else '[yellow]no[/]'


def check_package(package: Package, causes: dict[str, str]) -> Finding:
    """Import a package; distinguish a missing one from a broken one.

    Args:
        package: What to import.
        causes: Error → the package that raised it first; a repeated error is printed once.
    """
    name = package.name
    try:
        module = importlib.import_module(name)
        if package.part:
            importlib.import_module(f'{name}.{package.part}')
    except ModuleNotFoundError as error:
        if error.name == name:
            problem = f'{name} is not installed ({package.purpose}): {package.remedy}.'
            return Finding(name, 'not installed', problem, package.required)
        problem = f'{name} needs {error.name}, which is not installed: {package.remedy}.'
    except Exception as error:  # whatever a broken installation raises at import
        reason = f'{type(error).__name__}: {next(iter(str(error).splitlines()), "")}'
        first = causes.setdefault(reason, name)
        problem = (
            f'{name} is installed but cannot be imported ({reason}): install it anew in the '
            f'version of requirements/lock.txt; {ENVIRONMENT}.'
        )
        if first != name:
            problem = f'{name} cannot be imported for the same reason as {first}.'
    else:
        return Finding(name, str(getattr(module, '__version__', '')), '', package.required)
    return Finding(name, 'cannot be imported', problem, package.required)


def check_operators() -> Finding:
    """Check which package supplies mmcv's compiled operators."""
    from pera_mm.bridges import ops

    details = dict(
        compiled='compiled with mmcv',
        bridged='bridged over torchvision: nms, soft-nms, RoIAlign, deformable attention',
    )
    found = check_package(Package('mmcv.ops', False, 'detection'), {})
    return found._replace(name='operators of mmcv', detail=details.get(ops.provider(), ''))


def check_device() -> Finding:
    """Check whether torch can use the GPUs of this machine."""
    import torch

    if torch.cuda.is_available():
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name()
        return Finding('GPU', f'{count} x {name}, CUDA {torch.version.cuda}')
    build = f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'a CPU build'
    problem = (
        f'torch ({build}) sees no GPU: everything runs on the CPU, which is enough for the demo; '
        'on a machine with NVIDIA GPUs check nvidia-smi, and that its driver is new enough for '
        'the CUDA version of torch.'
    )
    return Finding('GPU', 'none: CPU only', problem)


def check_shared_memory(folder: Path = Path('/dev/shm')) -> Finding:
    """Check the memory through which data-loader workers pass images; Docker gives 64 MB."""
    if not folder.is_dir():
        return Finding('shared memory', f'no {folder}')
    size = shutil.disk_usage(folder).total
    problem = '' if size >= SHARED_MEMORY else (
        f'{folder} has only {size / 2**20:.0f} MB, too little for data-loader workers with large '
        'batches: docker run --shm-size 16g, or --ipc=host; else train_dataloader.num_workers=0.')
    return Finding('shared memory', f'{size / 2**30:.1f} GB', problem)


def check_open_files() -> Finding:
    """Check how many files a process may open: shards, and images that workers pass on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding('open files', 'no limit' if soft < 0 else str(soft))
    allowed = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    remedy = (f'ulimit -n {OPEN_FILES} in the shell that trains' if allowed else
              f'ask the administrator for {OPEN_FILES} (nofile in /etc/security/limits.conf)')
    problem = (
        f'A process may have only {soft} files open, too few for tar shards (256 in each '
        f'data-loader worker) or many workers: {remedy}; docker run --ulimit nofile={OPEN_FILES}.')
    return Finding('open files', str(soft), problem)


def dicts_in(cfg: Any) -> Iterator[dict]:
    """Yield every dict within a config, including the config."""
    if isinstance(cfg, dict):
        yield cfg
    for item in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(item, (dict, list, tuple)):
            yield from dicts_in(item)


def needed_packages(cfg: Any) -> set[str]:
    """Find the packages of :data:`PACKAGES` that a config names, by scope or by part."""
    types = [str(part.get('type', '')) for part in dicts_in(cfg._cfg_dict.to_dict())]
    scopes = {name.partition('.')[0] for name in types if '.' in name}
    scopes.add(cfg.get('default_scope') or 'mmengine')
    named = {NEEDED_BY[name] for name in types if name in NEEDED_BY}
    return named | scopes & {package.name for package in PACKAGES}


def unknown_types(cfg: Any) -> list[str]:
    """List the types ``pera_mm.X`` of a config that none of our registries has."""
    from mmengine.registry import Registry
    from mmengine.utils import get_object_from_string

    from pera_mm import registry

    registries = [value for value in vars(registry).values() if isinstance(value, Registry)]
    registries = [value for value in registries if value.scope == 'pera_mm']
    for one in registries:
        one.import_from_location()
    known = {f'pera_mm.{name}' for one in registries for name in one.module_dict}
    types = {str(part.get('type', '')) for part in dicts_in(cfg._cfg_dict.to_dict())}
    ours = {name for name in types if name.startswith('pera_mm.')} - known
    return sorted(name for name in ours if get_object_from_string(name) is None)  # full paths


def data_paths(cfg: Any) -> str:
    """List the folders and lists that training reads, and mark those that are not here."""
    dataloader = cfg.get('train_dataloader') or {}
    keys = ('source', 'data_root', 'path')
    found = [part.get(key) for part in dicts_in(dict(dataloader)) for key in keys]
    paths = sorted({path for path in found if isinstance(path, str) and path})
    return ', '.join(f'{path}{"" if Path(path).exists() else NOT_HERE}' for path in paths)


def check_config(path: Path, name: str, broken: set[str]) -> Finding:
    """Load a config, and look for everything that it names.

    Args:
        path: The config file.
        name: The name in the table.
        broken: The packages that cannot be imported here.
    """
    from mmengine.config import Config
    from mmengine.utils import import_modules_from_strings

    required = True
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
        needed = needed_packages(cfg)
        required = not needed & DOWNSTREAM
        if needed & broken:
            packages = ', '.join(sorted(needed & broken))
            return Finding(name, '', f'{name} needs {packages}, see above.', required)
        import_modules_from_strings(**cfg.get('custom_imports', {'imports': []}))
        missing = unknown_types(cfg)
    except Exception as error:  # a config is a program: it may raise anything
        reason = next(iter(str(error).splitlines()), '')
        problem = (
            f'{name} cannot be loaded ({type(error).__name__}: {reason}): correct it, or restore '
            'it with git or by a new installation of pera_mm.'
        )
        return Finding(name, '', problem, required)
    problem = ''
    if missing:
        problem = (
            f'{name} names {", ".join(missing)}, which pera_mm does not have: correct the name, '
            'import its module in custom_imports, or install the version of pera_mm that the '
            'config belongs to.'
        )
    data = data_paths(cfg)
    if not problem and NOT_HERE in data:
        problem = (
            f'{name} finds no images: put or link them where it looks '
            '(tools/data/prepare.py lays out the public data sets, tools/data/make_scenes.py '
            'draws scenes), or change the path in train_dataloader.dataset.'
        )
        required = False
    return Finding(name, data, problem, required)


def config_folder() -> Path | None:
    """Find ``configs/`` beside ``tools/`` (repository and package alike), else in the package."""
    beside = Path(__file__).resolve().parent.parent / 'configs'
    if beside.is_dir():
        return beside
    import pera_mm

    packaged = Path(pera_mm.__file__).parent / '.mim' / 'configs'
    return packaged if packaged.is_dir() else None


def check_configs(broken: set[str]) -> list[Finding]:
    """Check every config of pera_mm; none at all is also a problem."""
    if {'mmengine', 'pera_mm'} & broken:
        return [Finding('configs', '', 'No config can be loaded, see above.', True)]
    folder = config_folder()
    files = [] if folder is None else sorted(folder.rglob('*.py'))
    files = [file for file in files if folder and '_base_' not in file.relative_to(folder).parts]
    if folder is None or not files:
        problem = 'There are no configs: run from the repository, or reinstall pera_mm.'
        return [Finding('configs', '', problem, True)]
    return [check_config(file, str(file.relative_to(folder)), broken) for file in files]


def show(console: Console, title: str, last_column: str, findings: list[Finding]) -> None:
    """Print findings as a table."""
    table = Table(title=title, title_justify='left')
    for column in ('', 'here', last_column):
        table.add_column(column, overflow='fold')
    for finding in findings:
        table.add_row(finding.name, finding.mark, finding.detail)
    console.print(table)


def problem_sentences(findings: list[Finding]) -> list[str]:
    """Write a sentence per problem, BROKEN ones first; a problem of many configs once."""
    named: dict[tuple[bool, str], list[str]] = {}
    for finding in findings:
        if finding.problem:
            same = finding.required, finding.problem.removeprefix(finding.name)
            named.setdefault(same, []).append(finding.name)
    sentences = []
    for (required, problem), names in sorted(named.items(), key=lambda item: not item[0][0]):
        more = f' (and {len(names) - 1} more, see the table)' if len(names) > 1 else ''
        name = names[0] if problem.startswith(' ') else ''
        sentences.append(f'{"BROKEN" if required else "note"}: {name}{more}{problem}')
    return sentences


def main() -> int:
    """Check everything, print it, and return 0 if pre-training can run, else 1."""
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()  # --help
    warnings.filterwarnings('ignore')  # deprecations in other packages
    console = Console(highlight=False)
    console.print(f'Python {platform.python_version()}, {platform.platform()}, {sys.executable}')
    causes: dict[str, str] = {}
    packages = [check_package(package, causes) for package in PACKAGES]
    broken = {finding.name for finding in packages if finding.problem}
    if not broken & {'torch', 'mmengine', 'pera_mm', 'mmcv'}:
        packages.append(check_operators())
    if 'torch' not in broken:
        packages.append(check_device())
    packages += [check_shared_memory(), check_open_files()]
    configs = check_configs(broken)
    show(console, 'Environment', 'version', packages)
    show(console, 'Configs', 'data', configs)

    findings = packages + configs
    for sentence in problem_sentences(findings):
        console.print(sentence, markup=False, soft_wrap=True)
    failed = any(finding.problem and finding.required for finding in findings)
    console.print(
        '[red]Pre-training cannot run here yet: see what is BROKEN.[/]'
        if failed
        else '[green]Pre-training with our configs can run here.[/]'
    )
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
