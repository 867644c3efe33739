"""A correction of MMPretrain for a transformers that is too new for its multimodal models.

MMPretrain 1.2 imports its multimodal models (BLIP, LLaVA, …) whenever pycocotools and transformers
>= 4.28 are installed. From transformers 4.52 on, these imports fail, and with them every
``import mmpretrain.models``. :func:`activate` makes MMPretrain behave as it does without
transformers: such a model raises an ImportError when it is built, not before.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from importlib.util import spec_from_file_location
from types import ModuleType

from mmengine.utils import digit_version

DEPENDENCY = 'mmpretrain.utils.dependency'  # here MMPretrain notes what is installed
BREAKS_SINCE = '4.52'  # tried: 4.40.2, 4.49.0, 4.50.0, 4.51.3 work; 4.52.4, 4.53.3, 4.57.1 do not


class MultimodalBridge(SourceFileLoader):
    """A loader of :data:`DEPENDENCY` that corrects what it says about multimodal models."""

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        """Find :data:`DEPENDENCY` only."""
        spec = PathFinder.find_spec(fullname, path) if fullname == DEPENDENCY else None
        if spec is None or spec.origin is None:
            return None
        return spec_from_file_location(fullname, spec.origin, loader=cls(fullname, spec.origin))

    def exec_module(self, module: ModuleType) -> None:
        """Load the module and correct it."""
        super().exec_module(module)
        _correct(module)


def activate() -> None:
    """Correct MMPretrain now or when it is imported; a second call changes nothing.

    It has no effect if ``mmpretrain.models`` was imported before ``pera_mm``.
    """
    if DEPENDENCY in sys.modules:
        _correct(sys.modules[DEPENDENCY])
    elif MultimodalBridge not in sys.meta_path:
        sys.meta_path.insert(0, MultimodalBridge)


def breaks(transformers: str) -> bool:
    """Whether MMPretrain's multimodal models fail to import with this version."""
    return digit_version(transformers) >= digit_version(BREAKS_SINCE)


def _correct(dependency: ModuleType) -> None:
    try:
        if breaks(version('transformers')):
            vars(dependency)['WITH_MULTIMODAL'] = False
    except PackageNotFoundError:
        pass
