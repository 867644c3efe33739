"""Every config takes the other channel statistics by one line, with the name in it."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.export import NORMALIZATIONS

CONFIGS = Path(__file__).parent.parent / 'configs'
LEAVES = [path for path in sorted(CONFIGS.rglob('*.py'))
          if not {'_base_', 'baselines', 'collect', 'small'} & set(path.relative_to(CONFIGS).parts)]


def statistics(name: str) -> tuple[list[float], list[float]]:
    return tuple([255 * value for value in values] for values in NORMALIZATIONS[name])


def one_line_config(folder: Path, base: Path, name: str) -> Config:
    file = folder / 'mine.py'
    file.write_text(f"_base_ = '{base}'\n"
                    f'model = dict(data_preprocessor=_base_.normalization.{name})\n')
    return Config.fromfile(file)


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_one_line_takes_the_other_statistics(tmp_path, path):
    if 'opencd' in path.relative_to(CONFIGS).as_posix():
        pytest.importorskip('opencd', reason='Open-CD is not installed')
    taken = one_line_config(tmp_path, path, 'perascd').model.data_preprocessor
    default = Config.fromfile(path).model.data_preprocessor
    copies = len(default.mean) // 3  # two for a pair of dates
    for cfg, name in ((taken, 'perascd'), (default, 'imagenet')):
        for given, expected in zip((cfg.mean, cfg.std), statistics(name)):
            assert given == pytest.approx(expected * copies)


@pytest.mark.parametrize('config', ['potsdam_upernet_pera', 'dior_faster_rcnn_pera',
                                    'levircd_bit_pera', 'aid_tr20_pera', 'pera/pera_vitg_rsrsd'])
def test_each_toolbox_normalizes_with_them(tmp_path, config):
    cfg = one_line_config(tmp_path, CONFIGS / f'{config}.py', 'perascd')
    init_default_scope(cfg.default_scope)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    for given, expected in zip((preprocessor.mean, preprocessor.std), statistics('perascd')):
        assert given.flatten()[-3:] == pytest.approx(torch.tensor(expected))
