"""Turn the crops of the worker into the two color views of the model, on its device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.models.color import ColorRecipe, draw_colors, recolor_
from pera_mm.patches import PatchSplit
from pera_mm.registry import MODELS
from pera_mm.structures import GROUPS, CropGroup, CropViews

# MMEngine cannot write a config whose keys are Python's keywords, as 'global' is.
CONFIG_KEYS = {f'{name}_crops': name for name in GROUPS}
STUDENT_COLORS = dict(jitter=0.72, gray=0.08)
TEACHER_COLORS = dict(jitter=0.10)
NO_COLORS: Mapping[str, Any] = {}


@MODELS.register_module()
class CropPreprocessor(BaseDataPreprocessor):
    """Give each crop a student and a teacher view: colors drawn separately, then normalized.

    The default recipes are the reference's: student 72 % jitter, 8 % gray, 20 % unchanged;
    teacher 10 % jitter, never gray (augmentation.py L123-201, pera_reference.md §1.3).

    Shapes: B images, V views, n crops per image, S crop side in pixels.

    Args:
        mean: RGB mean in 0-255 units; ImageNet's, as the reference.
        std: RGB standard deviation in 0-255 units.
        student: color recipe of the student view: the arguments of
            :class:`~pera_mm.models.color.ColorRecipe`, for all crops; or a dict with keys
            ``global_crops`` and ``local_crops``, each a recipe, or a list with one recipe per
            crop.
            DINOv2's own::

                base = dict(jitter=0.8, gray=0.2, exclusive=False)
                student = dict(
                    global_crops=[dict(**base, blur=1.0), dict(**base, blur=0.1, solarize=0.2)],
                    local_crops=dict(**base, blur=0.5))

        teacher: color recipe of the teacher view; None: both networks see the same view, made
            once, as in DINO and DINOv2.
        non_blocking: copy to the device without waiting (needs pinned memory).

    Raises:
        ValueError: for a recipe or a mean / std that cannot be used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self,
                 mean: Sequence[float] = (123.675, 116.28, 103.53),
                 std: Sequence[float] = (58.395, 57.12, 57.375),
                 student: Mapping[str, Any] = STUDENT_COLORS,
                 teacher: Mapping[str, Any] | None = TEACHER_COLORS,
                 non_blocking: bool = False) -> None:
        super().__init__(non_blocking)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError('mean and std need three numbers each (RGB, 0-255 units), std above '
                            f'0, got {list(mean)} and {list(std)}.')
        # Not in the state dict: they belong to the config.
        self.register_buffer('mean', torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(3, 1, 1), persistent=False)
        self.recipes = {'student': _parse_recipes('student', student)}
        if teacher is not None:
            self.recipes['teacher'] = _parse_recipes('teacher', teacher)

    @torch.no_grad()
    def forward(self, data: dict, training: bool = False) -> dict:
        """Make the two views.

        Args:
            data: the collated batch: ``inputs``, a dict of group name to
                :class:`~pera_mm.structures.CropGroup` with pixels ``[B, V, n, S, S, 3]``.
            training: False leaves the colors alone.

        Returns:
            The batch with ``inputs`` a dict of group name to
            :class:`~pera_mm.structures.CropViews`, views ``[n, B, 3, S, S]`` (crop-major).

        Raises:
            TypeError: if the batch does not hold collated crop groups.
            ValueError: if the colors are shared but the geometry is not, or a list of recipes
                does not fit the number of crops.
        """
        inputs = data.get('inputs')
        if not isinstance(inputs, Mapping) or not all(
                isinstance(group, CropGroup) and group.pixels.ndim == 6
                for group in inputs.values()):
            raise TypeError("CropPreprocessor needs a batch whose 'inputs' are collated "
                            "CropGroups; end the pipeline with PackCrops and set the data "
                            "loader's collate_fn=dict(type='default_collate').")
        data = self.cast_data(data)
        return dict(data, inputs={name: self._views(name, group, training)
                                  for name, group in data['inputs'].items()})

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize uint8 RGB ``[..., S, S, 3]`` to float ``[..., 3, S, S]``, colors unchanged."""
        return self._standardize(_to_unit_range(pixels.to(self.device)))

    def _views(self, name: str, group: CropGroup, training: bool) -> CropViews:
        pixels = group.pixels.transpose(0, 2)  # crop-major: [n, V, B, S, S, 3]
        student = self._color('student', name, pixels[:, 0], training)
        if 'teacher' in self.recipes:  # one geometry serves both when V = 1
            teacher = self._color('teacher', name, pixels[:, -1], training)
        elif pixels.shape[1] == 1:
            teacher = student
        else:
            raise UserError('teacher=None of CropPreprocessor shows both networks the same view, '
                            'but AlignedCrops(aligned=False) cut two; set aligned=True, or give '
                            'the teacher colors of its own.')
        split = PatchSplit(*(part.transpose(0, 1) for part in group.split))
        return CropViews(student, teacher, split)

    def _color(self, role: str, name: str, pixels: Tensor, training: bool) -> Tensor:
        """Recolor and normalize one view of all crops of a group, uint8 ``[n, B, S, S, 3]``."""
        crops = _to_unit_range(pixels)
        if training:
            num_crops, batch_size = crops.shape[:2]
            recipes = _recipe_per_crop(role, name, self.recipes[role][name], num_crops)
            recolor_(crops.flatten(0, 1), draw_colors(recipes, batch_size))
        return self._standardize(crops)

    def _standardize(self, images: Tensor) -> Tensor:
        return images.sub_(self.mean / 255).div_(self.std / 255)


@MODELS.register_module()
class ViewsPreprocessor(CropPreprocessor):
    """Give MMPretrain's self-supervised models the crops as the images they know.

    One crop per image becomes one tensor (MAE), several become a list, one item per crop (MoCo
    v3). These models draw the visible patches themselves, so the split of
    ``DisjointMask`` is not used.

    Args:
        mean, std, non_blocking: as :class:`CropPreprocessor`.
        colors: color recipe of all crops, or a list with one recipe per crop; none by default.

    Raises:
        ValueError: for a recipe or a mean / std that cannot be used.
    """

    def __init__(self,
                 mean: Sequence[float] = (123.675, 116.28, 103.53),
                 std: Sequence[float] = (58.395, 57.12, 57.375),
                 colors: Mapping[str, Any] | Sequence[Mapping[str, Any]] = NO_COLORS,
                 non_blocking: bool = False) -> None:
        super().__init__(mean, std, dict.fromkeys(CONFIG_KEYS, colors), None, non_blocking)

    @torch.no_grad()
    def forward(self, data: dict, training: bool = False) -> dict:
        """Make the images.

        Args:
            data: the collated batch, as :meth:`CropPreprocessor.forward`, of global crops only.
            training: False leaves the colors alone.

        Returns:
            The batch with ``inputs`` a tensor ``[B, 3, S, S]`` for one crop per image, or a list
            of one such tensor per crop.

        Raises:
            TypeError: if the batch does not hold collated crop groups.
            ValueError: if there are local crops, or two geometries of a crop.
        """
        if isinstance(data.get('inputs'), Mapping) and 'local' in data['inputs']:
            raise UserError('ViewsPreprocessor takes crops of one size; set local_crops='
                            'dict(number=0) of AlignedCrops.')
        data = super().forward(data, training)
        images = list(data['inputs']['global'].student_view)
        return dict(data, inputs=images if len(images) > 1 else images[0])


def _to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 ``[..., S, S, 3]`` to a new contiguous float ``[..., 3, S, S]`` in [0, 1]."""
    return pixels.movedim(-1, -3).contiguous().float().div_(255)


def _parse_recipes(role: str, spec: Mapping[str, Any]) -> dict[str, list[ColorRecipe]]:
    """Return a list per group: one recipe per crop, or a single recipe for all of them."""
    per_group = spec if set(spec) & set(CONFIG_KEYS) else dict.fromkeys(CONFIG_KEYS, spec)
    if set(per_group) != set(CONFIG_KEYS):
        raise UserError(f"the {role}'s colors per group need exactly the keys "
                        f'{list(CONFIG_KEYS)}, got {sorted(per_group)}.')
    recipes = {}
    for key, name in CONFIG_KEYS.items():
        given = per_group[key]
        listed = [given] if isinstance(given, Mapping) else given
        try:
            recipes[name] = [ColorRecipe(**recipe) for recipe in listed]
        except TypeError:
            known = ', '.join(ColorRecipe.__dataclass_fields__)
            raise UserError(f"the {role}'s {name} colors must be a dict (or a list of dicts, one "
                            f'per crop) with keys among {known}, got {given}.') from None
    return recipes


def _recipe_per_crop(role: str, name: str, recipes: list[ColorRecipe],
                     num_crops: int) -> list[ColorRecipe]:
    if len(recipes) not in (1, num_crops):
        raise UserError(f"the {role}'s {name} colors list {len(recipes)} recipes, but there are "
                        f'{num_crops} {name} crops; give one recipe, or one per crop.')
    return recipes * num_crops if len(recipes) == 1 else recipes
