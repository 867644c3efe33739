"""Who may import whom: the rooms of the house keep their doors (CONTRIBUTING.md, 'Import law')."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / 'pera_mm'
LEAVES = ('pera_mm.errors', 'pera_mm.files', 'pera_mm.seeds', 'pera_mm.shares', 'pera_mm.stopping',
          'pera_mm.patches', 'pera_mm.structures', 'pera_mm.engine.schedules',
          'pera_mm.evaluation.knn', 'pera_mm.weights.fitting')
# Rooms of data: what they know of pera_mm besides themselves and the leaves.
DATA = {'pera_mm.datasets': ('pera_mm.registry', ),
        'pera_mm.scenes': ('pera_mm.datasets', ),
        'pera_mm.prepare': ('pera_mm.datasets', ),
        'pera_mm.collect': ('pera_mm.datasets', )}
# What the maps of scenes know besides the leaves; they build models through the registries.
MAPPING = ('pera_mm.datasets.reading', 'pera_mm.datasets.scene', 'pera_mm.datasets.scene_grids',
           'pera_mm.datasets.scene_pixels', 'pera_mm.launch', 'pera_mm.weights')
TOOLBOXES = ('mmseg', 'mmdet', 'opencd', 'mmcv.ops')


class Import(NamedTuple):
    importer: str  # pera_mm.models.selfsup.pera
    module: str  # the module named in the statement
    name: str | None  # X of `from module import X`


def imports(source: str, importer: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = '.' * node.level + (node.module or '')
            yield from (Import(importer, module, alias.name) for alias in node.names)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + '.') for package in packages)


def broken_law(statement: Import) -> str | None:
    """The law that this import breaks, or None."""
    importer, module, name = statement
    target = f'{module}.{name}' if name else module
    if name == '*' or module.startswith('.'):
        return 'import from the defining file, by its full name, never *'
    if within(importer, *LEAVES):
        top = module.partition('.')[0]
        if top not in {'torch', 'numpy', *sys.stdlib_module_names} and module not in LEAVES:
            return 'leaves import torch, numpy and the standard library'
    rooms = ['pera_mm.downstream', 'pera_mm.bridges.ops']
    if within(target, 'mmcv.ops'):
        rooms.append('pera_mm.models.backbones.deform_attn')  # where a compiled mmcv is asked for
    if within(target, *TOOLBOXES) and not within(importer, *rooms):
        return 'only downstream and bridges.ops import mmseg, mmdet, opencd or mmcv.ops'
    if within(target, 'pera_mm.collect') and not within(importer, 'pera_mm.collect'):
        return 'nothing of pera_mm needs collect'
    for room, known in DATA.items():
        if within(importer, room) and within(target, 'pera_mm') and not within(
                target, room, *known, *LEAVES):
            return f'{room.partition(".")[2]} knows only {", ".join(known)} and the leaves'
    if within(target, 'pera_mm.mapping') and not within(
            importer, 'pera_mm.mapping', 'pera_mm.export_model'):
        return 'only export_model needs mapping'
    if within(importer, 'pera_mm.mapping') and target != 'pera_mm' and within(
            target, 'pera_mm') and not within(target, 'pera_mm.mapping', *MAPPING, *LEAVES):
        return 'mapping knows only datasets.reading and scene*, launch, weights and the leaves'
    if within(importer, 'pera_mm.models') and within(target, 'pera_mm.datasets', 'pera_mm.engine'):
        return 'models know neither datasets nor engine'
    if within(importer, 'pera_mm.engine') and within(target, 'pera_mm.models') and (
            importer != 'pera_mm.engine.strategy'):  # FSDP is told which layers to shard
        return 'engine sees the model through the public names of a built one'
    if name and within(module, 'pera_mm') and not importer.endswith('.__init__'):
        folder = PACKAGE.parent / module.replace('.', '/')
        if folder.is_dir() and not ((folder / f'{name}.py').exists() or (folder / name).is_dir()):
            return 'import from the defining file, not from its package'
    return None


def test_every_import_keeps_the_law():
    broken = []
    for path in sorted(PACKAGE.rglob('*.py')):
        if '.mim' in path.parts:
            continue
        importer = '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)
        broken += [f'{importer} imports {statement.module}: {law}'
                   for statement in imports(path.read_text(), importer)
                   if (law := broken_law(statement))]
    assert not broken, '\n'.join(broken)


@pytest.mark.parametrize(('importer', 'statement', 'law'), [
    ('pera_mm.patches', 'import mmengine', 'leaves'),
    ('pera_mm.evaluation.knn', 'from pera_mm.registry import MODELS', 'leaves'),
    ('pera_mm.datasets.unlabeled', 'from pera_mm.models.color import recolor_', 'datasets know'),
    ('pera_mm.collect.common.tables', 'from pera_mm.launch import merge_options', 'collect knows'),
    ('pera_mm.datasets.unlabeled', 'import pera_mm.collect.common.tables', 'nothing of pera_mm'),
    ('pera_mm.mapping.run', 'from pera_mm.models.color import recolor_', 'mapping knows'),
    ('pera_mm.mapping.predictor', 'import mmseg.models', 'only downstream'),
    ('pera_mm.launch', 'from pera_mm.mapping.run import predict', 'only export_model'),
    ('pera_mm.models.color', 'import pera_mm.engine.schedules', 'models know'),
    ('pera_mm.models.color', 'from pera_mm import datasets', 'models know'),
    ('pera_mm.engine.loops', 'from pera_mm.models.selfsup.pera import PerA', 'engine sees'),
    ('pera_mm.models.color', 'def f():\n    from mmcv import ops', 'only downstream'),
    ('pera_mm.models.color', 'import mmseg.models', 'only downstream'),
    ('pera_mm.models.backbones.deform_attn', 'import mmseg.models', 'only downstream'),
    ('pera_mm.models.color', 'from torch import *', 'never'),
    ('pera_mm.models.color', 'from .heads import PixelHead', 'never'),
    ('pera_mm.models.color', 'from pera_mm.models.heads import PixelHead', 'defining file'),
])
def test_a_broken_law_is_named(importer, statement, law):
    assert [law in broken_law(found) for found in imports(statement, importer)] == [True]


@pytest.mark.parametrize(('importer', 'statement'), [
    ('pera_mm.downstream.bit', 'import mmseg.models'),
    ('pera_mm.bridges.ops', 'import mmcv.ops'),
    ('pera_mm.models.color', 'from pera_mm.models.heads.pixel_head import PixelHead'),
    ('pera_mm.engine.hooks.health', 'from pera_mm.evaluation import collapse'),
    ('pera_mm.engine.hooks.schedule', 'from pera_mm.engine import schedules'),
    ('pera_mm.__init__', 'from pera_mm.bridges import ops'),
    ('pera_mm.models.__init__', 'from pera_mm.models.heads import PixelHead'),
])
def test_a_kept_law_is_kept(importer, statement):
    assert [broken_law(found) for found in imports(statement, importer)] == [None]
