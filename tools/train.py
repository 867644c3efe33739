"""Train from a config: PerA and its baselines, and any MMEngine config of the toolboxes.

One process:        python tools/train.py CONFIG
Several GPUs:       tools/dist_train.sh CONFIG GPUS
Slurm:              tools/slurm_train.sh PARTITION JOB_NAME CONFIG

Ctrl-C and SIGTERM stop a run after its step, with a checkpoint to continue from (--resume) and exit
code 130 or 143. A second signal stops it at once.
"""

import argparse

import pera_mm  # noqa: F401  before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.launch import (
    errors_in_one_sentence,
    load_config,
    make_parser,
    set_checkpoint,
    set_precision,
    train,
)
from pera_mm.stopping import stopped_in_one_line


def parse_args() -> argparse.Namespace:
    """Parse the command line of training."""
    command = make_parser('Train from a config.')
    command.add_argument(
        '--resume', metavar='CKPT', nargs='?', const='auto',
        help='continue from CKPT, or without CKPT from the latest checkpoint in the work '
             'folder, if there is one')
    command.add_argument(
        '--amp', choices=['bf16', 'fp16', 'off'],
        help='mixed precision, in place of what the config says')
    return command.parse_args()


def main() -> None:
    """Train from the command line."""
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        set_precision(cfg, args.amp)
    if args.resume:
        set_checkpoint(cfg, args.resume, resume=True)
    train(cfg)


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
