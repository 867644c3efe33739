"""Train a config's ViT from scratch with all labels of the training half, as a comparison.

    python tools/benchmarks/supervised.py CONFIG --data FOLDER --images N --work-dir DIR --json FILE

It is the fine-tuning of the probe (configs/scenes/aid_pera_scenes.py) for about N images, in whole
epochs of at least one. It leaves the ViT in DIR/backbone.pth. The same command continues a run that
was interrupted. The JSON file has the images, images/s, and CPU seconds of the steps. With
--hold-out it learns no label of the validation blocks, so that these can choose its settings.
"""

import argparse
import json
from pathlib import Path

import torch
from classifier import classifier_config, set_epochs
from cpu_clock import cost
from mmengine.config import Config
from probe import labelled_split, validation_split, vit_config

from pera_mm.evaluation.features import read_labelled_folder
from pera_mm.files import write_whole
from pera_mm.launch import build_runner, errors_in_one_sentence, set_checkpoint
from pera_mm.options import positive_number, whole_number
from pera_mm.stopping import stopped_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('--data', required=True)
    parser.add_argument('--images', type=whole_number(1), required=True)
    parser.add_argument('--size', type=whole_number(1),
                        help="side of the images, px; the ViT's by default")
    parser.add_argument('--train-share', type=float, default=1.,
                        help='of the training half of each class; default: 1')
    parser.add_argument('--hold-out', action='store_true',
                        help='leave out the validation blocks of the training half')
    parser.add_argument('--lr', type=positive_number, help="of AdamW; the config's by default")
    parser.add_argument('--seed', type=whole_number(0), default=10)
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--json', type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    cfg = Config.fromfile(args.config)
    folder = read_labelled_folder(args.data)
    split = labelled_split(folder.labels, args.train_share, args.seed)
    if args.hold_out:
        split = validation_split(folder.labels, split)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    run = classifier_config(vit_config(cfg, None), cfg, folder, split,
                            args.size or cfg.model.backbone.img_size, 2, args.seed, args.work_dir)
    batch_size = run.train_dataloader.batch_size
    steps = len(split.train) // batch_size  # of an epoch; the rest is dropped
    epochs = max(round(args.images / (steps * batch_size)), 1)
    set_epochs(run, epochs, steps)
    if args.lr is not None:
        run.optim_wrapper.optimizer.lr = args.lr
    run.default_hooks.checkpoint.update(interval=max(epochs // 8, 1), max_keep_ckpts=1)
    run.custom_hooks = [*run.custom_hooks, dict(type='CpuClockHook')]
    set_checkpoint(run, 'auto', resume=True)
    runner = build_runner(run)
    runner.train()
    torch.save(runner.model.backbone.state_dict(), args.work_dir / 'backbone.pth')
    result = cost(args.work_dir, epochs * steps * batch_size, batch_size)
    write_whole(args.json, json.dumps(result).encode())


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
