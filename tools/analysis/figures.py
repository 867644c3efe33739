r"""Draw the paper's Figures 4, 5 and 6 from files of weights (docs/figures.md).

    python tools/analysis/figures.py attention WEIGHTS --images data/AID          # Figure 4a
    python tools/analysis/figures.py reconstruction WEIGHTS --images data/AID     # Figure 4b
    python tools/analysis/figures.py embedding DINOv2=A PerA=B --images data/AID  # Figure 5
    python tools/analysis/figures.py differences DINOv2=A PerA=B --images data/AID   # Figure 6a
    python tools/analysis/figures.py distribution DINOv2=A PerA=B --images data/AID  # Figure 6b

WEIGHTS is what pera_mm.load_backbone takes, or the work folder of a run. Reconstructions need a
PerA with its predictor, differences a student and a teacher. Every figure is a PDF and a PNG.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.evaluation import plane
from pera_mm.evaluation.attention import cls_attention, strongest
from pera_mm.evaluation.distribution import aligned_views, difference, histograms, spread
from pera_mm.evaluation.drawing import (
    Panel,
    Scatter,
    Tile,
    curves_figure,
    save,
    scatter_figure,
    sheet,
)
from pera_mm.evaluation.features import (
    evenly,
    images_below,
    read_batches,
    read_labelled_folder,
    token_features,
)
from pera_mm.evaluation.painting import reconstruct
from pera_mm.evaluation.pictures import attention_rows, in_rows, read_pictures
from pera_mm.files import check_writable, write_whole
from pera_mm.launch import errors_in_one_sentence
from pera_mm.options import add_device, whole_number
from pera_mm.stopping import stopped_in_one_line
from pera_mm.weights.backbone import NormalizedViT, load_backbone
from pera_mm.weights.loading import check_exists, file_of
from pera_mm.weights.pretraining import MaskRatios, load_painter, load_pair, mask_ratios

TILES = 8  # pictures in a row of a sheet, about
PLANES = {'tsne': ('t-SNE', plane.tsne), 'umap': ('UMAP', plane.umap)}
DIGITS = 6  # of numbers in JSON

console = Console(stderr=True)
T = TypeVar('T')


# -- Figure 4 -------------------------------------------------------------------------------


def attention(args: argparse.Namespace) -> None:
    """Draw what [cls] attends to: one file per image, and a sheet of pairs."""
    model = load_backbone(args.weights).to(args.device)
    depth = len(model.vit.layers)
    layers = args.layers or [depth]
    if not all(1 <= layer <= depth for layer in layers):
        raise UserError(f'--layers {" ".join(map(str, layers))}: this ViT has the layers 1 to '
                        f'{depth}.')
    if not 0 < args.mass <= 1:
        raise UserError(f'--mass is a share above 0 and at most 1, not {args.mass:g}.')
    groups, found = [], []
    pictures = read_pictures(args.images, args.number, args.size or model.img_size,
                             model.patch_size)
    for picture in with_bar(pictures, 'attention'):
        pixels = torch.from_numpy(picture.pixels).to(args.device).movedim(-1, 0)[None]
        maps = cls_attention(model.vit, model.normalize(pixels),
                             [layer - 1 for layer in layers])[:, 0]  # [L, heads, h, w]
        every = torch.cat([maps.mean(dim=1, keepdim=True), maps], dim=1)  # the mean first
        chosen = strongest(every, args.mass)
        save(sheet(attention_rows(picture, every, chosen, layers, args.mass)), args.out,
             f'attention_{picture.name}')
        groups.append([Tile(picture.pixels), *(
            Tile(map_.numpy(), f'layer {layer}' if len(layers) > 1 else '')
            for layer, map_ in zip(layers, every[:, 0]))])
        shares = chosen.double().mean(dim=(-2, -1))  # [L, 1 + heads]
        found.append(dict(path=picture.path, patches=rounded(shares), attention=rounded(maps)))
        print(f'{picture.path}: {args.mass:.0%} of the attention lies on ' + ', '.join(
            f'{share:.1%} of the patches (layer {layer})'
            for layer, share in zip(layers, shares[:, 0].tolist())))
    figure = sheet(in_rows(groups, max(TILES // (1 + len(layers)), 1)))
    finish(args, figure, 'attention', dict(weights=args.weights, layers=layers, mass=args.mass,
                                           images=found))


def reconstruction(args: argparse.Namespace) -> None:
    """Draw what the student sees, what it paints, and the truth, for each hidden share."""
    model = load_painter(args.weights).to(args.device)
    ratios = mask_ratios(args.weights)
    if ratios is None:
        ratios = MaskRatios()
        print(f'{args.weights} has no config with a DisjointMask in it or beside it: the student '
              f'is taken to have seen {ratios.student:.0%} of the patches and painted '
              f'{ratios.learnable:.0%} at a time, as in the reference.')
    shares = args.masked or [round(1 - ratios.student, DIGITS)]
    if not all(0 < share < 1 for share in shares):
        raise UserError('--masked are shares of the patches between 0 and 1, not '
                        f'{" ".join(f"{share:g}" for share in shares)}.')
    pictures = read_pictures(args.images, args.number,
                             args.size or model.student.backbone.img_size[0], model.patch_size)
    groups: list[list[Tile]] = []
    found: list[dict[str, Any]] = []
    for picture in with_bar(pictures, 'reconstruction'):
        rows, errors = [], {}
        for share in shares:
            drawn = reconstruct(model, torch.from_numpy(picture.pixels)[None], 1 - share,
                                ratios.learnable, args.seed)
            error = drawn.errors[0]
            errors[f'{share:g}'] = dict(rmse=error, explained=drawn.explained)
            rows.append([Tile(drawn.masked[0], f'{share:.0%} hidden'),
                         Tile(drawn.predicted[0], 'painted', f'RMSE {error:.1f}'),
                         Tile(drawn.original[0], 'original')])
        save(sheet(rows), args.out, f'reconstruction_{picture.name}')
        groups += rows
        found.append(dict(path=picture.path, hidden=errors))
        print(f'{picture.path}: ' + '; '.join(
            f'{float(share):.0%} hidden: RMSE {numbers["rmse"]:.1f}, '
            f'{percent(numbers["explained"])} of the variance'
            for share, numbers in errors.items()))
    for share in shares:
        numbers = [each['hidden'][f'{share:g}'] for each in found]
        mean, explained = (float(np.mean([each[name] for each in numbers]))
                           for name in ('rmse', 'explained'))
        print(f'mean of {len(found)} images, {share:.0%} hidden: RMSE {mean:.1f} of 255, '
              f'{percent(explained)} of the variance')
    figure = sheet(in_rows(groups, len(shares) if len(shares) > 1 else 2))
    finish(args, figure, 'reconstruction', dict(
        weights=args.weights, learnable=ratios.learnable, seed=args.seed, images=found))


# -- Figure 5 -------------------------------------------------------------------------------


def embedding(args: argparse.Namespace) -> None:
    """Draw the images of a labelled folder in the plane, by the features of each checkpoint."""
    folder = read_labelled_folder(args.images)
    kept = spread_over_classes(folder.labels, args.per_class)
    paths, labels = [folder.paths[index] for index in kept], folder.labels[kept]
    named = name_weights(args.weights)
    features = {}
    readable = torch.ones(len(paths), dtype=torch.bool)
    for name, path in named.items():
        model = load_backbone(path).to(args.device)
        features[name], read = file_features(model, paths, args, name)
        readable &= read
    paths, labels = [path for path, read in zip(paths, readable) if read], labels[readable]
    if (gone := int((~readable).sum())):
        print(f'{gone} images cannot be read and are left out.')
    found: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[Scatter]] = {method: [] for method in methods_of(args)}
    for name, values in features.items():
        values = values[readable]
        apart = plane.feature_separation(values, labels)
        knn = plane.half_knn(values, labels, args.seed)
        found[name] = dict(weights=named[name], knn=knn, **apart._asdict())
        print(f'{name}: features: kNN {knn:.1f} %, silhouette {apart.silhouette:.3f}, '
              f'Davies-Bouldin {apart.davies_bouldin:.2f}')
        for method, panels in rows.items():
            title, place = PLANES[method]
            with console.status(f'{title} of {name}'):
                points = place(values, args.seed)
            drawn = plane.separation(points, labels.numpy())
            found[name][method] = dict(points=rounded(points), **drawn._asdict())
            print(f'{name}: {title}: silhouette {drawn.silhouette:.3f}, Davies-Bouldin '
                  f'{drawn.davies_bouldin:.2f}')
            panels.append(Scatter(
                f'{name}, {title}', points,
                f'features: kNN {knn:.1f} %, silhouette {apart.silhouette:.3f}, '
                f'Davies–Bouldin {apart.davies_bouldin:.2f}\n'
                f'points: silhouette {drawn.silhouette:.3f}, '
                f'Davies–Bouldin {drawn.davies_bouldin:.2f}'))
    figure = scatter_figure(list(rows.values()), labels.numpy(), folder.classes)
    finish(args, figure, 'embedding', dict(
        images=args.images, token=args.token, seed=args.seed, classes=folder.classes, paths=paths,
        labels=labels.tolist(), checkpoints=found))


def methods_of(args: argparse.Namespace) -> list[str]:
    """Return the methods asked for; by default t-SNE, and UMAP where it is installed."""
    if args.method:
        return list(dict.fromkeys(args.method))
    try:
        version('umap-learn')
    except PackageNotFoundError:
        print('UMAP is left out, since umap-learn is not installed (pip install umap-learn).')
        return ['tsne']
    return list(PLANES)


def spread_over_classes(labels: Tensor, per_class: int | None) -> Tensor:
    """Choose images spread evenly over each class: their indices, ascending."""
    kept: list[int] = []
    for label in labels.unique():
        members = torch.where(labels == label)[0]
        kept += evenly(members.tolist(), per_class or len(members))
    return torch.tensor(kept)


def file_features(model: NormalizedViT, paths: Sequence[str], args: argparse.Namespace,
                  name: str) -> tuple[Tensor, Tensor]:
    """Compute features ``[N, D]`` of image files, and bool ``[N]``: whether each is readable."""
    features, readable = [], []
    for pixels, read in batches(paths, args.size or model.img_size, args.batch_size, name):
        features.append(token_features(model, pixels.movedim(-1, 1), args.token))
        readable.append(read)
    return torch.cat(features), torch.cat(readable)


# -- Figure 6 -------------------------------------------------------------------------------


def differences(args: argparse.Namespace) -> None:
    """Draw how far student and teacher are apart on two color views of the same images."""
    values, table, found = {}, {}, {}
    paths = pick(args.images, args.number)
    for name, path in name_weights(args.weights).items():
        pair = load_pair(path)
        student, teacher = (network.to(args.device) for network in pair)
        parts = []
        for number, (pixels, read) in enumerate(batches(
                paths, args.size or teacher.img_size, args.batch_size, name)):
            views = aligned_views(pixels, args.seed + number)
            both = [token_features(network, view, args.token)[read]
                    for network, view in zip((student, teacher), views)]
            parts.append(torch.stack(both))
        both = torch.cat(parts, dim=1)  # [2, R, D]
        numbers = difference(*both)
        raw = (both[0] - both[1]).abs()
        values[name] = raw, raw / both[1].square().mean().sqrt()
        found[name] = dict(weights=path, images=both.shape[1], **numbers._asdict())
        table[name] = (f'{numbers.mean:.4f}', f'{numbers.relative:.3f}', f'{numbers.cosine:.4f}')
        print(f'{name}: mean difference {numbers.mean:.4f}, relative {numbers.relative:.3f}, '
              f'cosine {numbers.cosine:.4f} ({both.shape[1]} images)')
    panels = []
    for index, (title, x) in enumerate((
            ('differences', '|student – teacher|'),
            ('relative differences', '|student – teacher| / RMS of the teacher'))):
        curves = histograms({name: both[index] for name, both in values.items()}, from_zero=True)
        panels.append(Panel(title, x, 'density', curves, steps=True))
    figure = curves_figure(panels, ('mean difference', 'relative', 'cosine'), table)
    finish(args, figure, 'differences', dict(
        images=args.images, token=args.token, seed=args.seed, checkpoints=found,
        histograms=[curves_as_data(panel) for panel in panels]))


def distribution_of(args: argparse.Namespace) -> None:
    """Draw the distribution of the features, and which dimensions respond to images."""
    values, table, found = {}, {}, {}
    paths = pick(args.images, args.number)
    for name, path in name_weights(args.weights).items():
        model = load_backbone(path).to(args.device)
        features, read = file_features(model, paths, args, name)
        values[name] = features[read]
        numbers = spread(values[name])
        found[name] = dict(weights=path, images=len(values[name]), **numbers._asdict())
        table[name] = (f'{numbers.std:.3f}', f'{numbers.low:.2f} to {numbers.high:.2f}',
                       f'{numbers.kurtosis:.2f}', f'{numbers.dead} of {numbers.width}',
                       f'{numbers.rank:.1f}')
        print(f'{name}: std {numbers.std:.3f}, 99.8 % of values in {numbers.low:.2f} to '
              f'{numbers.high:.2f}, excess kurtosis {numbers.kurtosis:.2f}, dead dimensions '
              f'{numbers.dead} of {numbers.width}, effective rank {numbers.rank:.1f} '
              f'({len(values[name])} images)')
    deviations = {}
    for name, features in values.items():
        ordered = features.std(dim=0, unbiased=False).sort(descending=True).values.numpy()
        deviations[name] = np.linspace(0, 100, len(ordered)), ordered
    panels = [
        Panel('values of the features', 'value', 'density', histograms(values), steps=True),
        Panel('dimensions by their spread over images', 'dimensions, % from the widest',
              'standard deviation', deviations, log=True)]
    header = 'std', '99.8 % of values', 'excess kurtosis', 'dead dimensions', 'effective rank'
    finish(args, curves_figure(panels, header, table), 'distribution', dict(
        images=args.images, token=args.token, checkpoints=found,
        curves=[curves_as_data(panel) for panel in panels]))


def pick(folder: str, number: int) -> list[str]:
    """List at most ``number`` images spread evenly over a folder.

    Raises:
        ValueError: if there are fewer than two.
    """
    paths = evenly(images_below(folder) if Path(folder).is_dir() else [], max(number, 0))
    if len(paths) < 2:
        raise UserError(f'a distribution needs at least 2 images, and {len(paths)} are chosen from '
                        f'{folder}: check --images and --number.')
    return paths


def curves_as_data(panel: Panel) -> dict[str, Any]:
    return dict(title=panel.title, x=panel.x, y=panel.y, curves={
        name: dict(x=rounded(x), y=rounded(y)) for name, (x, y) in panel.curves.items()})


# -- all figures ----------------------------------------------------------------------------


def name_weights(arguments: Sequence[str]) -> dict[str, str]:
    """Split ``NAME=WEIGHTS``; without a name it is that of the file or folder.

    Raises:
        ValueError: if two have one name, or a file of weights is missing.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition('=')
        if not equals or Path(argument).exists():
            name, path = Path(argument).stem, argument
        if name in named:
            raise UserError(f'two checkpoints are called {name}: name them, as in A={path}.')
        check_exists(file_of(path))
        named[name] = path
    return named


def batches(paths: Sequence[str], size: int, batch_size: int,
            name: str) -> Iterable[tuple[Tensor, Tensor]]:
    number = -(-len(paths) // batch_size)
    return track(read_batches(paths, size, batch_size), f'features of {name}', number,
                 console=console, transient=True)


def with_bar(items: Sequence[T], what: str) -> Iterator[T]:
    yield from track(items, what, console=console, transient=True)


def percent(share: float) -> str:
    return f'{round(share, 2) + 0.:.0%}'  # without a minus before 0


def rounded(values: Tensor | np.ndarray) -> list:
    return np.asarray(values, np.float64).round(DIGITS).tolist()


def finish(args: argparse.Namespace, figure: Any, name: str, data: dict[str, Any]) -> None:
    """Write the figure, with ``--json`` also the data behind it, and say where."""
    paths = save(figure, args.out, name)
    if args.json:
        paths.append(args.out / f'{name}.json')
        write_whole(paths[-1], json.dumps(data).encode())
    print('wrote ' + ', '.join(map(str, paths)))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(required=True, metavar='FIGURE')

    def add(name: str, draw: Any, help: str) -> argparse.ArgumentParser:
        sub = figures.add_parser(name, help=help, description=draw.__doc__)
        sub.set_defaults(draw=draw)
        return sub

    pictures = [add('attention', attention, 'Figure 4a: what [cls] attends to'),
                add('reconstruction', reconstruction, 'Figure 4b: what the student paints')]
    points = add('embedding', embedding, 'Figure 5: t-SNE and UMAP of a labelled folder')
    values = [add('differences', differences, 'Figure 6a: student against teacher'),
              add('distribution', distribution_of, 'Figure 6b: the values of the features')]
    for sub in pictures:
        sub.add_argument('weights', metavar='WEIGHTS', help='a file, or the work folder of a run')
        sub.add_argument('--images', nargs='+', required=True, metavar='PATH',
                         help='files, and folders of images')
        sub.add_argument('--number', type=whole_number(1), default=8, metavar='N',
                         help='images of a folder, spread evenly over it (default: 8)')
        sub.add_argument('--size', type=whole_number(1), metavar='PX',
                         help="of the images' shorter side (default: that of training); each side "
                         'becomes a multiple of the patch size')
    for sub in (points, *values):
        sub.add_argument('weights', nargs='+', metavar='[NAME=]WEIGHTS',
                         help='a file, or the work folder of a run')
        sub.add_argument('--size', type=whole_number(1), metavar='PX',
                         help='side of the images (default: that of training, for each)')
        sub.add_argument('--token', choices=('cls', 'mean'), default='cls',
                         help='[cls] or the mean of the patch tokens (default: cls)')
        sub.add_argument('--batch-size', type=whole_number(1), default=32, metavar='N')
    attention_, reconstruction_ = pictures
    attention_.add_argument('--layers', type=int, nargs='+', metavar='N',
                            help='from 1 (default: the last)')
    attention_.add_argument('--mass', type=float, default=0.6, metavar='SHARE',
                            help="of the attention, in the maps of chosen patches (default: 0.6, "
                            "DINO's)")
    reconstruction_.add_argument('--masked', type=float, nargs='+', metavar='SHARE',
                                 help='of the patches that is hidden (default: that of the run)')
    points.add_argument('--images', required=True, metavar='FOLDER',
                        help='with a folder of images per class')
    points.add_argument('--method', nargs='+', choices=PLANES,
                        help='(default: tsne, and umap where it is installed)')
    points.add_argument('--per-class', type=whole_number(2), metavar='N',
                        help='images of a class, spread evenly over it (default: all)')
    for sub in values:
        sub.add_argument('--images', required=True, metavar='FOLDER')
        sub.add_argument('--number', type=whole_number(2), default=500, metavar='N',
                         help='images, spread evenly over the folder (default: 500)')
    for sub in (reconstruction_, points, values[0]):
        sub.add_argument('--seed', type=whole_number(0), default=0, metavar='N')
    for sub in (*pictures, points, *values):
        sub.add_argument('--out', '-o', type=Path, default=Path('work_dirs/figures'),
                         metavar='FOLDER', help='(default: %(default)s)')
        sub.add_argument('--json', action='store_true',
                         help='also write the data behind the figure')
        add_device(sub)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable(args.out, 'give another --out')
    args.draw(args)


if __name__ == '__main__':
    with stopped_in_one_line(), errors_in_one_sentence():
        main()
