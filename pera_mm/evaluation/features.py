"""The teacher's features of a folder of labelled images.

Shapes: N images, D features, B images of a batch, S side of the resized image in pixels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pera_mm.datasets.matching import class_folders, list_images
from pera_mm.datasets.reading import UnreadableImage, read_image
from pera_mm.errors import UserError

T = TypeVar('T')

class LabelledFolder(NamedTuple):
    """The images of class folders, in a stable order."""

    paths: list[str]
    labels: Tensor  # int64 [N], index into classes
    classes: list[str]  # names of the folders, sorted


class Split(NamedTuple):
    """The indices of the images to learn from and to test on, int64, disjoint."""

    train: Tensor
    test: Tensor


def read_labelled_folder(root: str) -> LabelledFolder:
    """List ``root/<class>/**/<image>``, as :func:`~pera_mm.datasets.matching.class_folders` does.

    Raises:
        ValueError: if ``root`` is missing or holds images of fewer than two classes.
    """
    if not os.path.isdir(root):
        raise UserError(f"the labelled folder '{root}' does not exist; it must hold one folder "
                        'of images per class.')
    images = class_folders(root)
    classes = list(images)
    if len(classes) < 2:
        raise UserError(f"the labelled folder '{root}' must hold at least two folders with "
                        f'images, one per class; found {len(classes)}.')
    paths = [os.path.join(root, path) for name in classes for path in images[name]]
    labels = [label for label, name in enumerate(classes) for _ in images[name]]
    return LabelledFolder(paths, torch.tensor(labels), classes)


def images_below(folder: str) -> list[str]:
    """List the paths of all images below a folder, sorted."""
    return [os.path.join(folder, path) for path in list_images(folder)]


def read_evenly(folder: str, number: int, size: int) -> list[np.ndarray]:
    """Read images spread evenly over a folder, each uint8 RGB ``[size, size, 3]``.

    Returns:
        At most ``number`` of them, without those that cannot be read; none of a missing folder.
    """
    paths = images_below(folder) if os.path.isdir(folder) else []
    images = (read_square(path, size) for path in evenly(paths, number))
    return [image for image in images if image is not None]


def evenly(items: Sequence[T], number: int) -> list[T]:
    """Choose at most ``number`` items spread evenly, in their order."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]


def stratified_split(labels: Tensor, train_share: float = 0.5, max_per_class: int | None = None,
                     seed: int = 0) -> Split:
    """Draw the same share of train images from every class.

    Args:
        labels: int64 ``[N]``.
        train_share: in (0, 1); the rest is for testing. Every class keeps at least one of each.
        max_per_class: the largest number of images used of a class, drawn at random; None: all.
        seed: of the draw, so that all epochs and ranks use the same images.

    Raises:
        ValueError: if the share is not in (0, 1) or a class has fewer than two images.
    """
    if not 0 < train_share < 1:
        raise UserError(f'train_share must lie between 0 and 1, got {train_share}.')
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in labels.unique():
        members = torch.where(labels == label)[0]
        chosen = members[torch.randperm(len(members), generator=generator)][:max_per_class]
        if len(chosen) < 2:
            raise UserError(f'class number {int(label)} has {len(chosen)} image(s) to use; a '
                            'probe needs at least 2 of every class, one to learn and one to test.')
        cut = min(max(round(len(chosen) * train_share), 1), len(chosen) - 1)
        train.append(chosen[:cut])
        test.append(chosen[cut:])
    return Split(torch.cat(train).sort().values, torch.cat(test).sort().values)


def extract_features(model: nn.Module, paths: Sequence[str], size: int, batch_size: int = 64,
                     encode: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Extract the teacher's [cls] features of image files, resized to ``size`` x ``size`` pixels.

    It draws no random numbers, keeps no gradient and leaves the mode of every module as it was.
    All batches run even if images cannot be read, so that ranks stay in step.

    Args:
        model: gives ``teacher_features`` and ``data_preprocessor.normalize``.
        paths: N >= 1 files.
        size: S, a multiple of the patch size.
        batch_size: images per forward pass.
        encode: normalized images ``[B, 3, S, S]`` to features ``[B, D]``; default: the model's
            ``teacher_features``.

    Returns:
        Features float32 ``[N, D]`` on the CPU, and bool ``[N]``: whether the image was readable
        (the features of one that was not are those of a black image).
    """
    encode = model.teacher_features if encode is None else encode
    features, readable = [], []
    for pixels, read in read_batches(paths, size, batch_size):
        normalized = model.data_preprocessor.normalize(pixels)  # [B, 3, S, S]
        with torch.no_grad():
            features.append(encode(normalized).float().cpu())
        readable.append(read)
    return torch.cat(features), torch.cat(readable)


def read_batches(paths: Sequence[str], size: int,
                 batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Read image files, resized to squares.

    Yields:
        Pixels uint8 RGB ``[B, size, size, 3]``, and bool ``[B]``: whether the image was readable.
        One that was not is black.
    """
    black = np.zeros((size, size, 3), np.uint8)
    for start in range(0, len(paths), batch_size):
        images = [read_square(path, size) for path in paths[start:start + batch_size]]
        pixels = np.stack([black if image is None else image for image in images])
        yield torch.from_numpy(pixels), torch.tensor([image is not None for image in images])


def token_features(model: nn.Module, images: Tensor, token: str) -> Tensor:
    """Compute the features of images, without a gradient.

    Args:
        model: a :class:`~pera_mm.weights.backbone.NormalizedViT`.
        images: uint8 RGB ``[B, 3, S, S]``, on any device.
        token: 'cls', or 'mean' of the patch tokens.

    Returns:
        float32 ``[B, D]`` on the CPU.
    """
    with torch.no_grad():
        return getattr(model(images.to(model.mean.device)), token).float().cpu()


def read_square(path: str, size: int) -> np.ndarray | None:
    """Read an image file as uint8 RGB ``[size, size, 3]``; None if it cannot be read."""
    try:
        return squared(read_image(path), size)
    except UnreadableImage:
        return None


def squared(image: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 RGB ``[H, W, 3]`` to ``[size, size, 3]``."""
    return _resized(image, size, size)


def fitted(image: np.ndarray, side: int, patch_size: int) -> np.ndarray:
    """Resize uint8 RGB ``[H, W, 3]`` so that its shorter side is about ``side`` pixels.

    Each side becomes a multiple of the patch size, at least one patch. So proportions change by
    less than half a patch.
    """
    scale = side / min(image.shape[:2])
    height, width = (max(round(length * scale / patch_size), 1) * patch_size
                     for length in image.shape[:2])
    return _resized(image, height, width)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = image.shape[0] > height and image.shape[1] > width
    return cv2.resize(image, (width, height),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
