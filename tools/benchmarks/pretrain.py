"""Pre-train a config on the training half of a folder, for a number of steps, and write its cost.

    python tools/benchmarks/pretrain.py CONFIG --data FOLDER --probe-data FOLDER --steps N \
        --work-dir DIR --json FILE [--cfg-options KEY=VALUE ...]

Images that the probe tests on (--probe-data) and copies of their files are left out. The config's
schedules are stretched or shortened to N steps: a warm-up of one epoch in eight takes an eighth of
the steps, and so on. The images come in random passes, the last of which may end early. The same
command continues a run that was interrupted. The JSON file has the images, images/s, and CPU
seconds of the steps; of a model that paints hidden pixels, also how much of their variance it
explains in test images, in percent.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from cpu_clock import cost
from mmengine.config import Config
from torch import nn

import pera_mm  # noqa: F401  before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.errors import UserError
from pera_mm.evaluation.block_split import block_split
from pera_mm.evaluation.features import images_below, read_labelled_folder, read_square
from pera_mm.evaluation.painting import paint_hidden, variance_explained
from pera_mm.files import sha256, write_whole
from pera_mm.launch import errors_in_one_sentence, load_config, make_parser, set_checkpoint, train
from pera_mm.options import whole_number
from pera_mm.stopping import stopped_in_one_line
from pera_mm.weights.pretraining import MaskRatios, mask_ratios

PAINTED = 64  # test images
IN_EPOCHS = {'T_max', 'milestones', 'periods', 'restart_weights', 'step_size', 'total_iters'}


def training_images(data: str, probe_data: str) -> list[str]:
    """List the images below ``data`` without those that the probe of ``probe_data`` tests on.

    A file with the same bytes is the same image, wherever it lies; one that was saved anew is not.

    Returns:
        Paths relative to ``data``.

    Raises:
        ValueError: if there is no such folder, or nothing is left.
    """
    if not os.path.isdir(data):
        raise UserError(f'{data} does not exist or is not a folder: name that of the images.')
    folder = read_labelled_folder(probe_data)
    tested = [Path(folder.paths[i]) for i in block_split(folder.labels).test]
    sizes, hashes = {path.stat().st_size for path in tested}, set(map(sha256, tested))
    kept = [os.path.relpath(path, data) for path in map(Path, images_below(data))
            if not (path.is_file() and path.stat().st_size in sizes and sha256(path) in hashes)]
    if not kept:
        raise UserError(f'{data} holds no image to pre-train on besides those that are tested.')
    return kept


def in_passes(images: list[str], number: int, seed: int) -> list[str]:
    """Repeat the images, each time in another order, and cut the list to ``number``."""
    rng = np.random.default_rng(seed)
    passes = -(-number // len(images))
    order = np.concatenate([rng.permutation(len(images)) for _ in range(passes)])[:number]
    return [images[i] for i in order]


def stretch(cfg: Config, steps: int) -> None:
    """Make a config of epochs one of ``steps`` steps in a single epoch; schedules keep shares.

    Raises:
        ValueError: if the config has a schedule that counts epochs in another way.
    """
    epochs = cfg.train_cfg.max_epochs
    for schedule in cfg.param_scheduler:
        if not schedule.get('by_epoch', True):
            continue
        if IN_EPOCHS & set(schedule):
            raise UserError(f'{schedule.type} counts epochs in '
                            f'{", ".join(sorted(IN_EPOCHS & set(schedule)))}: use begin and end.')
        for key in {'begin', 'end'} & set(schedule):
            if schedule[key]:
                schedule[key] = max(round(schedule[key] / epochs * steps), 1)
        schedule.update(by_epoch=False, convert_to_iter_based=False)
    hooks = cfg.default_hooks
    if 'teacher_temp' in (hooks.get('schedule') or {}):
        hooks.schedule.teacher_temp.warmup_epochs /= epochs
    if (hooks.get('freeze_last_layer') or {}).get('epochs'):
        raise UserError('FreezeLastLayerHook counts whole epochs, which a budget does not have: '
                        'set default_hooks.freeze_last_layer.epochs=0.')
    hooks.pop('probe', None)  # its cost is not that of the method
    if hooks.checkpoint.by_epoch:
        hooks.checkpoint.update(by_epoch=False, interval=max(steps // 8, 1))
    cfg.train_cfg.max_epochs = 1


def prepare(cfg: Config, data: str, steps: int, names: Path) -> None:
    """Let ``cfg`` train for ``steps`` steps on the list ``names`` of images of ``data``."""
    stretch(cfg, steps)
    cfg.train_dataloader.dataset.update(source=str(names), data_root=os.path.abspath(data))
    cfg.train_dataloader.sampler = dict(type='pera_mm.DrawSampler', shuffle=False)


def painted(model: nn.Module, probe_data: str, ratios: MaskRatios) -> float:
    """Return the share of hidden pixels' variance that the student explains in test images, in %.

    See :func:`variance_explained`. The student sees and paints the shares of its training.
    """
    folder = read_labelled_folder(probe_data)
    tested = block_split(folder.labels).test
    spread = tested[torch.linspace(0, len(tested) - 1, min(PAINTED, len(tested))).long()]
    size = model.student.backbone.img_size[0]
    images = [read_square(folder.paths[i], size) for i in spread]
    readable = torch.stack([torch.from_numpy(image) for image in images if image is not None])
    with torch.no_grad():
        normalized = model.data_preprocessor.normalize(readable)
        return 100 * variance_explained(paint_hidden(model, normalized, *ratios))


def parse_args() -> argparse.Namespace:
    parser = make_parser('Pre-train for a comparison.')
    parser.add_argument('--data', required=True)
    parser.add_argument('--probe-data', required=True)
    parser.add_argument('--steps', type=whole_number(2), required=True)
    parser.add_argument('--json', type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    names = Path(cfg.work_dir) / 'images.txt'
    batch_size = cfg.train_dataloader.batch_size
    images = in_passes(training_images(args.data, args.probe_data), args.steps * batch_size,
                       cfg.randomness.seed)
    write_whole(names, ''.join(f'{image}\n' for image in images).encode())
    prepare(cfg, args.data, args.steps, names)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='CpuClockHook')]
    set_checkpoint(cfg, 'auto', resume=True)
    model = train(cfg)
    result = cost(Path(cfg.work_dir), args.steps * batch_size, batch_size)
    if getattr(model, 'predictor', None) is not None:
        ratios = mask_ratios(cfg.work_dir) or MaskRatios()
        result['painted'] = painted(model, args.probe_data, ratios)
    write_whole(args.json, json.dumps(result).encode())


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
