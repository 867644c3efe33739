from pera_mm.datasets.transforms.aligned_crops import AlignedCrops
from pera_mm.datasets.transforms.block_mask import BlockMask
from pera_mm.datasets.transforms.disjoint_mask import DisjointMask
from pera_mm.datasets.transforms.formatting import PackCrops
from pera_mm.datasets.transforms.load_rgb import LoadRGB

__all__ = ['AlignedCrops', 'BlockMask', 'DisjointMask', 'LoadRGB', 'PackCrops']
