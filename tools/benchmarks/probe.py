"""Score features on scenes: kNN, linear, few labels, and a short fine-tuning.

    python tools/benchmarks/probe.py CONFIG [CHECKPOINT] --data FOLDER --json FILE

CONFIG is that of the pre-training; only its ViT is used. CHECKPOINT is a file, or a work folder for
its last checkpoint. Without it the ViT starts at random. --features takes a floor instead of the
ViT: mean and deviation of the bands, or random convolutional features.

The classifiers learn from half of each class of FOLDER (one folder of images per class) and are
tested on the other half, the same for all: blocks of ten images that follow each other in the
listing go to one half as a whole, since neighbors are alike. kNN (k = 10) and a linear
classifier see [cls] and the mean of the patch tokens. The better of both is the one with more right
on a quarter of the training blocks, so the test does not choose. With few labels the linear
classifier gets 1 to 25 % of the training half, and the score is the mean of five draws. With
--train-share S all of this learns from a share of the training half, drawn by the seed. In the
fine-tuning (configs/scenes/aid_pera_scenes.py on these images) the last epoch counts.

FILE gets the scores in percent; beside it, FILE with the suffix .npz gets whether each test image
is right under each of them.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from classifier import classifier_config, outcomes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmpretrain.registry import MODELS
from torch import Tensor

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.errors import UserError
from pera_mm.evaluation.block_split import block_split
from pera_mm.evaluation.collapse import band_statistics
from pera_mm.evaluation.features import LabelledFolder, Split, read_labelled_folder, read_square
from pera_mm.evaluation.knn import knn_predictions
from pera_mm.evaluation.linear_probe import linear_predictions
from pera_mm.evaluation.random_patches import patch_features, patch_filters
from pera_mm.files import write_whole
from pera_mm.launch import build_runner, errors_in_one_sentence, keep_freed_memory
from pera_mm.options import whole_number

FEATURES = ('vit', 'bands', 'convolutions')
TOKENS = ('cls', 'patch')
CLASSIFIERS = {'knn': knn_predictions, 'linear': linear_predictions}
SHARES = (1, 5, 10, 25)  # percent of the labels of the training half
DRAWS = 5
VALIDATION = 4  # every fourth block of the training half
BATCH = 8  # small, since the maps of all filters are large

Features = dict[str, Tensor]  # of each token, [N, D]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path, nargs='?')
    parser.add_argument('--data', required=True)
    parser.add_argument('--features', choices=FEATURES, default='vit')
    parser.add_argument('--size', type=whole_number(1),
                        help="side of the images, px; the config's own crops' by default")
    parser.add_argument('--train-share', type=float, default=1.,
                        help='of the training half of each class, to learn from; default: 1')
    parser.add_argument('--epochs', type=whole_number(0), default=10,
                        help='of the fine-tuning; 0: none')
    parser.add_argument('--seed', type=whole_number(0), default=10,
                        help='of random weights, few labels and the fine-tuning')
    parser.add_argument('--json', type=Path, required=True, help='where the scores go, in percent')
    return parser.parse_args()


def labelled_split(labels: Tensor, share: float, seed: int) -> Split:
    """Halve the images by blocks, and keep a share of the training half of each class.

    Args:
        labels: int64 ``[N]``, classes in the order of the listing.
        share: above 0, at most 1. At least one image of each class is kept.
        seed: of the draw; all rows of a comparison with the same seed have the same images.

    Raises:
        ValueError: for another share.
    """
    if not 0 < share <= 1:
        raise UserError(f'--train-share {share:g}: expected above 0 and at most 1.')
    split = block_split(labels)
    kept = some_labels(labels, split.train, 100 * share, seed)
    return Split(kept.sort().values, split.test)


def validation_split(labels: Tensor, split: Split) -> Split:
    """Split the training half once more, by blocks: to learn from, and to choose settings on.

    Raises:
        ValueError: if a class has too few images in it.
    """
    inner = block_split(labels[split.train], every=VALIDATION)
    return Split(*(split.train[part] for part in inner))


def vit_config(cfg: Config, checkpoint: Path | None) -> dict:
    """Return a pre-training's ViT as a dense PerAViT for [cls], filled from ``checkpoint``."""
    vit = cfg.model.backbone
    arch = vit.get('arch', 'base')
    shape = MODELS.get(vit.type).arch_zoo[arch] if isinstance(arch, str) else arch
    names = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
    random = ('sine_positions', 'mimetic')  # how it starts without a checkpoint
    same = {key: vit[key] for key in ('img_size', 'patch_size', 'norm_cfg', *random) if key in vit}
    start = None if checkpoint is None else dict(
        type='pera_mm.PretrainedBackbone', checkpoint=str(checkpoint))
    return dict(type='pera_mm.PerAViT', arch={name: shape[name] for name in names},
                out_type='cls_token', init_cfg=start, **same)


def latest(checkpoint: Path | None) -> Path | None:
    """Return a file as it is, or the last checkpoint of a work folder."""
    if checkpoint is None or not checkpoint.is_dir():
        return checkpoint
    pointer = checkpoint / 'last_checkpoint'
    if not pointer.exists():
        raise SystemExit(f'There is no checkpoint in {checkpoint}: train first.')
    return checkpoint / Path(pointer.read_text()).name  # the folder may have moved


def read_images(folder: LabelledFolder, cfg: Config, size: int) -> Tensor:
    """Read and normalize all images as float32 ``[N, 3, S, S]``.

    Raises:
        ValueError: if a file cannot be read, as a score without it would not be comparable.
    """
    images = torch.empty(len(folder.paths), 3, size, size)
    for number, path in enumerate(folder.paths):
        pixels = read_square(path, size)
        if pixels is None:
            raise UserError(f'{path} cannot be read: repair it or take it away.')
        images[number] = torch.from_numpy(pixels).permute(2, 0, 1)
    mean, std = (torch.tensor(cfg.model.data_preprocessor[key]).view(3, 1, 1)
                 for key in ('mean', 'std'))
    return images.sub_(mean).div_(std)


def vit_features(vit: dict, images: Tensor) -> Features:
    """Return [cls] and the mean patch token, both after the final norm."""
    backbone = MODELS.build(dict(vit, out_type='raw'))
    backbone.init_weights()
    backbone.eval()
    tokens = in_batches(lambda part: pooled(backbone(part)[-1]), images)
    return dict(zip(TOKENS, tokens.unbind(dim=1)))


def pooled(tokens: Tensor) -> Tensor:
    """Return [cls] and the mean of the others: ``[B, 1 + N, D]`` to ``[B, 2, D]``."""
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


def floor_features(kind: str, images: Tensor, train: Tensor, seed: int) -> Features:
    """Return features without a network, standardized by the training half: one "token"."""
    encode = band_statistics if kind == 'bands' else partial(
        patch_features, filters=patch_filters(images[train], seed=seed))
    features = in_batches(encode, images)
    mean, deviation = features[train].mean(dim=0), features[train].std(dim=0)
    return {kind: (features - mean) / deviation.clamp(min=1e-6)}


def in_batches(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([encode(part) for part in images.split(BATCH)])


def frozen_outcomes(features: Features, labels: Tensor, split: Split, seed: int,
                    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Score frozen features.

    Returns:
        For ``knn`` and ``linear``, of each token (``knn_cls``) and of the better (``knn``), and for
        ``labels1`` to ``labels25``: the share of draws in which each test image is right,
        ``[M]``. And ``knn_validation``: the accuracy of the better on the validation blocks, %.
    """
    fit, validation = validation_split(labels, split)
    found: dict[str, np.ndarray] = {}
    best: dict[str, str] = {}
    for name, predict in CLASSIFIERS.items():
        def right(token: str, learn: Tensor, test: Tensor,
                  predict: Callable = predict) -> np.ndarray:
            vectors = features[token]
            predicted = predict(vectors[learn], labels[learn], vectors[test])
            return (predicted == labels[test]).numpy()

        chosen = {token: right(token, fit, validation).mean() for token in features}
        best[name] = max(chosen, key=lambda token: chosen[token])
        tests = {token: right(token, split.train, split.test) for token in features}
        if len(features) > 1:
            found |= {f'{name}_{token}': test for token, test in tests.items()}
        found[name] = tests[best[name]]
        if name == 'knn':
            validation_score = 100 * float(chosen[best[name]])
    for share in SHARES:
        draws = [right(best['linear'], some_labels(labels, split.train, share, DRAWS * seed + draw),
                       split.test) for draw in range(DRAWS)]
        found[f'labels{share}'] = np.mean(draws, axis=0)
    return found, dict(knn_validation=validation_score)


def some_labels(labels: Tensor, train: Tensor, share: float, seed: int) -> Tensor:
    """Draw ``share`` percent of the training images of each class, at least one, as indices."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label in labels[train].unique():
        members = train[labels[train] == label]
        number = max(round(share / 100 * len(members)), 1)
        drawn.append(members[torch.randperm(len(members), generator=generator)[:number]])
    return torch.cat(drawn)


def fine_tuned_outcomes(vit: dict, cfg: Config, folder: LabelledFolder, split: Split, size: int,
                        epochs: int, seed: int) -> np.ndarray:
    """Train the ViT and a linear classifier briefly; return whether each test image is right."""
    with tempfile.TemporaryDirectory() as work_dir:
        run = classifier_config(vit, cfg, folder, split, size, epochs, seed, Path(work_dir))
        run.default_hooks.checkpoint = None
        runner = build_runner(run)
        runner.train()
        return outcomes(runner)


def write_scores(path: Path, found: dict[str, np.ndarray], scores: dict[str, float],
                 ) -> dict[str, float]:
    """Write the outcomes beside ``path`` and then, as a sign that all is done, the scores."""
    shares = {key: right.astype(np.float32) for key, right in found.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **shares)  # type: ignore[arg-type]  # allow_pickle is not a key
    scores = scores | {key: 100 * float(share.mean()) for key, share in shares.items()}
    write_whole(path.with_suffix('.npz'), stream.getvalue())
    write_whole(path, json.dumps(scores).encode())
    return scores


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    cfg = Config.fromfile(args.config)
    size = args.size or cfg.model.backbone.img_size
    folder = read_labelled_folder(args.data)
    split = labelled_split(folder.labels, args.train_share, args.seed)
    set_random_seed(args.seed)
    init_default_scope('mmpretrain')
    images = read_images(folder, cfg, size)
    if args.features == 'vit':
        vit = vit_config(cfg, latest(args.checkpoint))
        features = vit_features(vit, images)
    else:
        features = floor_features(args.features, images, split.train, args.seed)
    del images
    found, scores = frozen_outcomes(features, folder.labels, split, args.seed)
    if args.features == 'vit' and args.epochs:
        found['finetune'] = fine_tuned_outcomes(vit, cfg, folder, split, size, args.epochs,
                                                args.seed)
    print(write_scores(args.json, found, scores))


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
