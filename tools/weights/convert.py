r"""Convert PerA weights, report every tensor, and check what was written.

SRC is the authors' raw training file (9 GB; mapped into memory, not read whole), a checkpoint of
pera_mm, a PerASCD-style file (an encoder under student.backbone.*), or a public ViT in the layout
of timm, Hugging Face, DINO, DINOv2, MAE or CLIP, which is recognized. --to is the kind of DST:

    backbone   DST.safetensors  the teacher's ViT under our names, and DST.md, its model card
    timm       a folder         for timm.create_model('local-dir:DST', pretrained=True)
    hf         a folder         for transformers.ViTModel.from_pretrained(DST)
    pera_mm    DST.pth          the whole model under our names, without optimizer
    reference  DST.params       the whole model in the layout of the authors' training files

Examples (docs/weights.md has more):
    python tools/weights/convert.py checkpoints/pera_ViTG161024.params \
        checkpoints/pera_vitg.safetensors --to backbone --normalization perascd
    python tools/weights/convert.py work_dirs/demo/iter_400.pth demo_timm --to timm --heads 2
"""

import argparse
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

import pera_mm  # noqa: F401  before any toolbox
from pera_mm import export
from pera_mm.errors import UserError
from pera_mm.files import sha256
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import whole_number
from pera_mm.stopping import stopped_in_one_line
from pera_mm.weights.backbone import find_with_facts
from pera_mm.weights.facts import ACTIVATIONS
from pera_mm.weights.loading import file_of, load_checkpoint, read_metadata
from pera_mm.weights.names import pera_weights, weights_of
from pera_mm.weights.public import shape_of

HEAD_WIDTH = 64  # channels of a head in most ViTs
TOLERANCE = 1e-5  # largest change of features by writing, over their root mean square
SUFFIXES = dict(backbone=('.safetensors',), timm=('',), hf=('',), pera_mm=('.pth',),
                reference=('.params', '.pth'))
WRITTEN_NAMES = {'README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json'}
WRITERS = dict(backbone=export.write_backbone, timm=export.write_timm, hf=export.write_hf)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', type=Path,
                        help='the file to read, or the folder that it is in')
    parser.add_argument('dst', metavar='DST', type=Path, help='the file or folder to write')
    parser.add_argument('--to', required=True, choices=list(SUFFIXES))
    parser.add_argument('--network', choices=['teacher', 'student'],
                        help='whose backbone to take (default: teacher)')
    parser.add_argument('--heads', type=whole_number(1), metavar='N',
                        help='of the attention, needed if not exactly one arch of PerAViT has '
                             'this width and depth')
    parser.add_argument('--activation', choices=list(ACTIVATIONS),
                        help='of a CLIP, needed if there is no config.json beside it')
    parser.add_argument('--normalization', choices=list(export.NORMALIZATIONS),
                        help='which mean and std to record (default: those in SRC or in a config '
                             "beside it, else imagenet, as in the authors' configs, or clip for a "
                             'CLIP; docs/weights.md)')
    parser.add_argument('--force', action='store_true', help='replace DST')
    return parser.parse_args()


def check_paths(args: argparse.Namespace) -> None:
    """Raise for paths that cannot be used, before any work."""
    suffixes, dst = SUFFIXES[args.to], args.dst
    if dst.suffix not in suffixes and suffixes != ('',):
        raise UserError(
            f'--to {args.to} writes a file that ends with {" or ".join(suffixes)}, not {dst}.')
    if suffixes == ('',) and dst.suffix in {'.bin', '.params', '.pt', '.pth', '.safetensors'}:
        raise UserError(f'--to {args.to} writes a folder: leave out the {dst.suffix} of {dst}.')
    for path in targets(args):
        if path.resolve() == args.src.resolve():
            raise UserError(f'{path} is SRC itself: give another DST.')
        if not path.exists():
            continue
        if not args.force:
            raise UserError(f'{path} exists: give another DST, or --force to replace it.')
        if path.is_dir() != (suffixes == ('',)):
            kind = 'folder' if path.is_dir() else 'file'
            raise UserError(f'{path} is a {kind}, which --to {args.to} does not replace.')
        others = {item.name for item in path.iterdir()} - WRITTEN_NAMES if path.is_dir() else ()
        if others:
            raise UserError(f'{path} also has other files, such as {min(others)}: not replaced.')


def targets(args: argparse.Namespace) -> list[Path]:
    return [args.dst, args.dst.with_suffix('.md')] if args.to == 'backbone' else [args.dst]


def convert(args: argparse.Namespace) -> None:
    args.src = file_of(args.src)
    check_paths(args)
    checkpoint = load_checkpoint(args.src)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'{args.src} holds a {type(checkpoint).__name__}, not weights by name.')
    try:
        if args.to in WRITERS:
            convert_backbone(args, checkpoint)
        else:
            convert_model(args, checkpoint)
    except UserError as error:
        raise UserError(f'{args.src}: {error}') from None


def convert_backbone(args: argparse.Namespace, checkpoint: Mapping[str, Any]) -> None:
    noted = read_metadata(args.src)
    network = args.network or noted.get('network', 'teacher')
    if network != noted.get('network', network):
        raise UserError(f'it holds the {noted["network"]} alone, not the {network}.')
    found, facts = find_with_facts(args.src, checkpoint, network)
    report_taken(found.state, f"the {network}'s backbone", found.total,
                 [*found.left, *found.beside])
    for change in found.changes:
        print(change)
    heads, width = args.heads or facts.heads, shape_of(found.state)['embed_dims']
    if not heads or width % heads:
        raise UserError(f'the number of attention heads is not in the weights, and PerAViT has '
                        f'no arch of width {width} and this depth, or two with different heads: '
                        f'give --heads, which divides {width} (most ViTs have '
                        f'{width // HEAD_WIDTH or 1} there, one per {HEAD_WIDTH}).')
    activation = args.activation or facts.activation
    if not activation:
        raise UserError('the activation of a CLIP is not in its weights, and there is no config '
                        "beside them: give --activation, quick_gelu for OpenAI's, gelu for most "
                        'of open_clip.')
    normalization = args.normalization or (
        export.normalization_of(*facts.statistics) if facts.statistics
        else export.usual_normalization(found.state))
    if not (args.normalization or facts.statistics):
        print(f'mean and std: {normalization} (see --normalization in docs/weights.md)')
    source = dict(source=args.src.name, source_sha256=sha256(args.src), network=network)
    if 'source' in noted:  # the original source, not a copy of it
        source = {key: noted[key] for key in source}
    backbone = export.Backbone(found.state, heads, normalization, source, activation, facts.eps)
    check_room(args.dst, backbone.state)
    with ExitStack() as stack:
        part, *card = [stack.enter_context(export.whole(path)) for path in targets(args)]
        WRITERS[args.to](backbone, part)
        text = export.model_card(backbone, args.to, args.dst.name)
        (card[0] if card else part / 'README.md').write_text(text)
        check_features(backbone, args, part)
    print(f'{args.dst}: {backbone.name} of depth {backbone.arch["num_layers"]} and width {width}, '
          f'{backbone.img_size} px, normalization {backbone.metadata()["normalization"]}')


def convert_model(args: argparse.Namespace, checkpoint: Mapping[str, Any]) -> None:
    if args.network or args.heads or args.normalization or args.activation:
        raise UserError(f'--to {args.to} writes the whole model, so --network, --heads, '
                        '--normalization and --activation have no meaning.')
    weights = pera_weights(checkpoint)
    taken_from = weights_of(checkpoint)
    report_taken(weights, 'the whole model', len(taken_from),
                 [key for key in checkpoint if checkpoint[key] is not taken_from]
                 if taken_from is not checkpoint else [])
    meta = checkpoint.get('meta') or {}
    # The authors count epochs from 0; MMEngine keeps how many are finished.
    epoch = checkpoint['epoch'] + 1 if 'epoch' in checkpoint else meta.get('epoch', 0)
    check_room(args.dst, weights)
    with export.whole(args.dst) as part:
        if args.to == 'reference':
            export.write_reference(weights, part, max(epoch - 1, 0))
        else:
            export.write_pera(weights, part, dict(
                epoch=epoch, source=args.src.name, source_sha256=sha256(args.src)))
        count = check_model(weights, part)
    print(f'{args.dst}: {count} tensors')


def report_taken(taken: Mapping[str, Tensor], what: str, total: int, left: list[str]) -> None:
    """Print what was taken from the file, and what was left out."""
    count = sum(value.numel() for value in taken.values())
    print(f'{what}: {len(taken)} tensors, {count:,} parameters, of {total} tensors')
    if left:
        print(f'left out: {", ".join(left)}')


def check_room(dst: Path, state: Mapping[str, Tensor]) -> None:
    dst.parent.mkdir(parents=True, exist_ok=True)
    need, free = sum(value.nbytes for value in state.values()), shutil.disk_usage(dst.parent).free
    if need > free:
        raise UserError(f'{dst} needs {need:,} bytes, and its disk has {free:,} free.')


def check_features(backbone: export.Backbone, args: argparse.Namespace, part: Path) -> None:
    difference = export.feature_difference(backbone, args.to, part)
    library = dict(timm='timm', hf='transformers').get(args.to, 'pera_mm')
    if difference is None:
        print(f'not checked: {library} is not installed here')
        return
    if not difference <= TOLERANCE:
        raise UserError(f'the features of what was written differ by {difference:.1e} of their '
                        f'size in {library}, so nothing is kept.')
    print(f'checked in {library}: features differ by {difference:.1e} of their size')


def check_model(weights: Mapping[str, Tensor], part: Path) -> int:
    """Check the tensors that were written and return their number."""
    found = pera_weights(load_checkpoint(part))
    wrong = [key for key in found if not found[key].equal(weights[key])]
    if wrong:
        raise UserError(f'{len(wrong)} tensors are not what was written (first {wrong[0]}), so '
                        'nothing is kept.')
    dropped = ', '.join(sorted(weights.keys() - found.keys()))
    print(f'read back: {len(found)} tensors, bit-equal'
          + (f'; the authors do not keep {dropped}' if dropped else ''))
    return len(found)


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence('convert'):
        convert(parse_args())
