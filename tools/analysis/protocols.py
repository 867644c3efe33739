r"""Score a checkpoint under all protocols of its config, in one table.

    python tools/analysis/protocols.py configs/potsdam_upernet_pera.py CHECKPOINT

It prints the table and writes ``protocols.md`` into the work folder. The config's
``test_evaluator.protocols`` (pera_mm.ConfusionMetric) say what is counted. Its ``inference_modes``
say how the maps are predicted: several named forms of ``model.test_cfg``, such as

    inference_modes = {
        'whole image': dict(mode='whole'),
        'tiles 256': dict(mode='slide', crop_size=(256, 256), stride=(256, 256)),
    }

Without them, ``model.test_cfg`` is the only mode. The images are predicted once for each mode.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from rich.console import Console
from rich.table import Table

import pera_mm  # noqa: F401  before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.errors import UserError
from pera_mm.launch import (
    build_runner,
    errors_in_one_sentence,
    load_config,
    make_parser,
    require_test_loop,
    set_checkpoint,
)
from pera_mm.stopping import stopped_in_one_line

OUTPUT = 'protocols.md'
RGB_LOADERS = ('pera_mm.LoadRGB', 'pera_mm.LoadPair')


class ProtocolScores(NamedTuple):
    """The scores of one protocol, in percent."""

    inference: str
    protocol: str
    scores: dict[str, float]


def parse_args() -> argparse.Namespace:
    table = make_parser('Score a checkpoint under all protocols of its config, in one table.')
    table.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file')
    return table.parse_args()


def inference_modes(cfg: Config) -> dict[str, dict]:
    """Return the config's modes, else its ``model.test_cfg`` under a descriptive name.

    Raises:
        ValueError: if the config has no test, or its metric has no protocols.
    """
    require_test_loop(cfg)
    if 'protocols' not in cfg.test_evaluator:
        raise UserError(f'The test_evaluator of {cfg.filename} has no protocols: it must be a '
                        'pera_mm.ConfusionMetric.')
    if cfg.get('inference_modes'):
        return cfg.inference_modes
    test_cfg = cfg.model.test_cfg
    if test_cfg.get('mode', 'whole') == 'whole':
        return {'whole image': test_cfg}
    return {f'sliding {_size(test_cfg.crop_size)}, stride {_size(test_cfg.stride)}': test_cfg}


def _size(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f'{size[0]} x {size[1]}'


def score(cfg: Config) -> list[ProtocolScores]:
    """Test in every inference mode; one row for each protocol of each.

    Args:
        cfg: with the checkpoint in ``load_from``.
    """
    modes = inference_modes(cfg)
    runner = build_runner(cfg)
    rows = []
    for name, test_cfg in modes.items():
        inner_model(runner).test_cfg = ConfigDict(test_cfg)
        rows += to_rows(name, runner.test())
    return rows


def to_rows(inference: str, metrics: Mapping[str, float]) -> list[ProtocolScores]:
    """Group ``protocol/score`` by protocol, in the metric's order."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        protocol, _, name = key.rpartition('/')
        found.setdefault(protocol, {})[name] = value
    return [ProtocolScores(inference, protocol, scores) for protocol, scores in found.items()]


def as_cells(rows: list[ProtocolScores]) -> list[list[str]]:
    """Write the table as text, its heading first; a score that a protocol lacks is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    heading = ['inference', 'protocol', *names]
    return [heading] + [
        [row.inference, row.protocol,
         *(f'{row.scores[name]:.2f}' if name in row.scores else '' for name in names)]
        for row in rows]


def to_markdown(cells: list[list[str]], cfg: Config) -> str:
    """Write the table with its config, checkpoint and images."""
    heading, *rows = ('| ' + ' | '.join(line) + ' |' for line in cells)
    rule = '|' + ' --- |' * len(cells[0])
    data = cfg.test_dataloader.dataset
    loaders = {step['type'] for step in data.get('pipeline', [])}
    bands = ', read as RGB' if loaders.intersection(RGB_LOADERS) else ''
    return '\n'.join([
        f'Config: `{cfg.filename}`  ', f'Checkpoint: `{cfg.load_from}`  ',
        f'Images: `{data.get("data_root")}`, {_folders(data)}{bands}', '',
        heading, rule, *rows, ''])


def _folders(data: Mapping[str, Any]) -> str:
    return ', '.join(f'`{folder}`' for folder in data.get('data_prefix', {}).values())


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    inference_modes(cfg)
    set_checkpoint(cfg, args.checkpoint)
    cells = as_cells(score(cfg))
    if is_main_process():
        table = Table(*cells[0])
        for line in cells[1:]:
            table.add_row(*line)
        Console().print(table)
        path = Path(cfg.work_dir) / OUTPUT
        path.write_text(to_markdown(cells, cfg))
        print(f'written to {path}')


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
