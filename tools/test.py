"""Test a checkpoint with the test loop of its config.

One process:        python tools/test.py CONFIG CHECKPOINT
Several GPUs:       tools/dist_test.sh CONFIG CHECKPOINT GPUS
"""

import argparse

import pera_mm  # noqa: F401  before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.launch import (
    build_runner,
    errors_in_one_sentence,
    load_config,
    make_parser,
    require_test_loop,
    set_checkpoint,
)
from pera_mm.stopping import stopped_in_one_line


def parse_args() -> argparse.Namespace:
    """Parse the command line of testing."""
    test = make_parser('Test a checkpoint with the test loop of its config.')
    test.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file')
    return test.parse_args()


def main() -> None:
    """Test, log the metrics and write them to the work folder."""
    args = parse_args()
    cfg = load_config(args)
    require_test_loop(cfg)
    set_checkpoint(cfg, args.checkpoint)
    build_runner(cfg).test()


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
