"""The data that training reads: images, masks and boxes, their order, and their transforms."""

from pera_mm.datasets import transforms
from pera_mm.datasets.labelled import LabelledImages
from pera_mm.datasets.sampler import DrawSampler
from pera_mm.datasets.unlabeled import UnlabeledImages

__all__ = ['DrawSampler', 'LabelledImages', 'UnlabeledImages', 'transforms']
