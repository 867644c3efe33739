"""Write a trained model for other programs: ONNX (.onnx), or PyTorch's own file (.pt2).

    python tools/export.py CONFIG CHECKPOINT model.onnx

Segmentation, change and classification (docs/export.md). The file is run and compared with PyTorch
before it is moved into place.
"""

import argparse
import warnings
from pathlib import Path

from rich.console import Console

import pera_mm  # noqa: F401  before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.errors import UserError
from pera_mm.export_model import OPSET, export_model
from pera_mm.launch import errors_in_one_sentence, merge_options, read_config
from pera_mm.options import add_cfg_options, positive_number, whole_number
from pera_mm.stopping import stopped_in_one_line


def parse_args() -> argparse.Namespace:
    """Parse the command line of exporting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file')
    parser.add_argument('output', metavar='OUT', type=Path, help='the file, .onnx or .pt2')
    parser.add_argument('--size', type=whole_number(1), metavar='PX',
                        help='side of the images (default: the window or the size that the config '
                             'tests with)')
    parser.add_argument('--gsd', type=positive_number, metavar='METERS',
                        help='size of a pixel on the ground, for the metadata')
    parser.add_argument('--grid-sample', action='store_true',
                        help='keep the GridSample of deformable attention, which TensorRT 10 '
                             'computes wrongly (default: gathers instead)')
    parser.add_argument('--force', action='store_true', help='replace OUT')
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Export, and print what was written."""
    args = parse_args()
    warnings.filterwarnings('ignore')  # deprecation notes of the toolboxes
    if args.output.exists() and not args.force:
        raise UserError(f'{args.output} exists: give another name, or --force to replace it.')
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    with Console(stderr=True).status(f'Writing and checking {args.output}, a minute or two'):
        written = export_model(cfg, args.checkpoint, args.output, size=args.size, gsd=args.gsd,
                               grid_sample=args.grid_sample)
    size = written.metadata['tiles_size']
    batch = 'any batch' if written.any_batch else 'a batch of 1'
    opset = f', opset {OPSET}' if args.output.suffix == '.onnx' else ''
    print(f'{written.path}: {written.metadata["task"]}, {len(written.metadata["class_names"])} '
          f'classes, {written.size / 1e6:.1f} MB{opset}, {batch} of {size} x {size} px; largest '
          f'difference of a probability from PyTorch {written.difference:.1e}.')


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
