"""Initialize a backbone from a checkpoint, or stop (design.md, decision 11)."""

from math import isqrt
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.registry import WEIGHT_INITIALIZERS
from pera_mm.weights.fitting import compare, not_finite
from pera_mm.weights.loading import load_checkpoint, load_from_http
from pera_mm.weights.names import teacher_backbone
from pera_mm.weights.sources import how_to_make

CONVERT = ('make it from a checkpoint of a pre-training with "python tools/weights/convert.py '
           'CHECKPOINT checkpoints/NAME.safetensors --to backbone"')
ADVICE = ("give another with --cfg-options '...init_cfg.checkpoint=PATH', or start from random "
          "weights with '...init_cfg=None'.")


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Fill a :class:`PerAViT` from a PerA checkpoint; a tensor that does not arrive is an error.

    Set it on the ViT: ``init_cfg=dict(type='pera_mm.PretrainedBackbone', checkpoint=...)``.
    MMEngine's ``Pretrained`` continues in silence when half of the keys do not match. Position
    embeddings of another image size are resized.

    Args:
        checkpoint: path or URL of a checkpoint of pera_mm, the authors' raw training file, a
            checkpoint of MMPretrain with a ViT (MAE, MoCo v3), or a backbone alone under our names
            or timm's. A URL is downloaded once, into torch.hub's cache, and read as a local file.
        network: 'teacher', which the paper uses downstream, or 'student'.
    """

    def __init__(self, checkpoint: str | Path, network: str = 'teacher') -> None:
        self.checkpoint, self.network = checkpoint, network

    def __call__(self, module: PerAViT) -> None:
        """Load the checkpoint.

        Raises:
            ValueError: if the file is missing, cannot be downloaded or is not such a checkpoint,
                or a tensor of the backbone is missing, has another shape or is not finite.
        """
        if not isinstance(module, PerAViT):
            raise UserError('PretrainedBackbone is the init_cfg of a pera_mm.PerAViT, not of a '
                            f'{type(module).__name__}; in a ViTAdapter set it inside vit=dict().')
        checkpoint = self._read()
        try:
            found = teacher_backbone(checkpoint, self.network)
        except UserError as error:
            raise UserError(f'{self.checkpoint}: {error}') from None
        self._check_weights(found, module)
        source = tuple([isqrt(found['pos_embed'].shape[1] - 1)] * 2)
        target = tuple(module.patch_resolution)
        found['pos_embed'] = resize_pos_embed(found['pos_embed'], source, target,
                                              module.interpolate_mode)
        module.load_state_dict(found, strict=True)
        resized = '' if source == target else (
            f', position embedding resized from {source} to {target} patches')
        print_log(f'{self.checkpoint}: all {len(found)} tensors of the {self.network} backbone '
                  f'loaded (depth {module.num_layers}, width {module.embed_dims}){resized}.',
                  logger='current')

    def _read(self) -> Any:
        path = str(self.checkpoint)
        if path.startswith(('http://', 'https://')):
            return load_from_http(path, 'cpu')
        if '://' in path:
            raise UserError(f'{path}: a backbone is read from a local file, http:// or https:// '
                            f'only; download it by other means, and {ADVICE}')
        if not Path(path).expanduser().is_file():
            raise UserError(f'There is no pretrained checkpoint {path}: '
                            f'{how_to_make(path) or CONVERT}; or {ADVICE}')
        return load_checkpoint(path)

    def _check_weights(self, found: dict[str, Tensor], module: PerAViT) -> None:
        if broken := not_finite(found):
            raise UserError(f'{self.checkpoint} holds inf or nan in {len(broken)} tensors of the '
                            f'{self.network} backbone (first {broken[0]}); nothing was loaded: '
                            'take another checkpoint.')
        misfit = compare(found, module.state_dict(), resizable=['pos_embed'])
        if not misfit:
            return
        depth = len({name.split('.')[1] for name in found if name.startswith('layers.')})
        raise UserError(
            f'{self.checkpoint} holds a ViT of depth {depth}, width {found["cls_token"].shape[-1]} '
            f'and patch {found["patch_embed.projection.weight"].shape[-1]}, the config has '
            f'depth {module.num_layers}, width {module.embed_dims} and patch {module.patch_size}: '
            f'{misfit}; nothing was loaded. Set arch and patch_size of the ViT to '
            "the checkpoint's, or take another checkpoint.")
