"""The reading of images in the pipelines of the toolboxes."""

from collections.abc import Sequence

from mmcv.transforms import BaseTransform

from pera_mm.datasets.reading import Scale, UnreadableImage, read_image, rule_of
from pera_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Read ``img_path`` as 8-bit RGB, by the rule of pre-training (``datasets/reading.py``).

    An unreadable file is appended to ``skipped`` as (path, reason), and there is no sample. The
    data set draws another one (:class:`pera_mm.datasets.labelled.RedrawUnreadable`).

    **Required Keys:** img_path, skipped. **Added Keys:** img (uint8 ``[H, W, 3]``), img_shape,
    ori_shape.

    Args:
        bands, scale: How rasters become 8-bit RGB, see :mod:`pera_mm.datasets.reading`.
            ``tools/predict.py`` takes them from here.

    Raises:
        ValueError: if the rule is not one of those.
    """

    def __init__(self, bands: Sequence[int] | None = None,
                 scale: Scale | Sequence[float] = 'auto') -> None:
        self.rule = rule_of(bands, scale)

    def transform(self, results: dict) -> dict | None:
        """Read the image; None if the file is unreadable."""
        try:
            image = read_image(results['img_path'], *self.rule)
        except UnreadableImage as error:
            results['skipped'].append((results['img_path'], str(error)))
            return None
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
