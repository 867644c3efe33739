from pera_mm.datasets.transforms.aligned_crops import AlignedCrops
from pera_mm.datasets.transforms.disjoint_mask import DisjointMask
from pera_mm.datasets.transforms.formatting import PackCrops

__all__ = ['AlignedCrops', 'DisjointMask', 'PackCrops']
