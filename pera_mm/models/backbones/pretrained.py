"""Initialize a backbone from a checkpoint, or stop (design.md, decision 11)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from pera_mm.errors import UserError
from pera_mm.models.backbones.pera_vit import PerAViT
from pera_mm.registry import WEIGHT_INITIALIZERS
from pera_mm.weights.facts import mismatches, read_facts
from pera_mm.weights.fitting import compare, not_finite
from pera_mm.weights.loading import file_of, load_checkpoint, load_from_http
from pera_mm.weights.public import find_backbone, shape_of
from pera_mm.weights.resizing import resize_embeddings
from pera_mm.weights.sources import how_to_make

CONVERT = ('make it from a checkpoint of a pre-training with "python tools/weights/convert.py '
           'CHECKPOINT checkpoints/NAME.safetensors --to backbone"')
ADVICE = ("give another with --cfg-options '...init_cfg.checkpoint=PATH', or start from random "
          "weights with '...init_cfg=None'.")


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Fill a :class:`PerAViT` from a checkpoint; a tensor that does not arrive is an error.

    Set it on the ViT: ``init_cfg=dict(type='pera_mm.PretrainedBackbone', checkpoint=...)``.
    MMEngine's ``Pretrained`` continues in silence when half of the keys do not match. Patch
    embeddings of another patch size and position embeddings of another grid are resampled; the log
    says so, and what was left out.

    Args:
        checkpoint: path or URL of a checkpoint of pera_mm, the authors' raw training file, a
            checkpoint of MMPretrain with a ViT (MAE, MoCo v3), or a ViT in a layout that
            :mod:`pera_mm.weights.public` knows (timm, Hugging Face, DINO, DINOv2, MAE, CLIP), also
            as a folder of timm or Hugging Face. A URL is downloaded once, into torch.hub's cache,
            and read as a local file.
        network: 'teacher', which the paper uses downstream, or 'student'.
    """

    def __init__(self, checkpoint: str | Path, network: str = 'teacher') -> None:
        self.checkpoint, self.network = checkpoint, network

    def __call__(self, module: PerAViT) -> None:
        """Load the checkpoint.

        Raises:
            ValueError: if the file is missing, cannot be downloaded or is not such a checkpoint,
                a tensor of the backbone is missing, has another shape or is not finite, or the
                file says that the ViT has other heads or another activation.
        """
        if not isinstance(module, PerAViT):
            raise UserError('PretrainedBackbone is the init_cfg of a pera_mm.PerAViT, not of a '
                            f'{type(module).__name__}; in a ViTAdapter set it inside vit=dict().')
        checkpoint = self._read()
        with self._named():
            found = find_backbone(checkpoint, self.network)
        state, resized = resize_embeddings(found.state, module)
        self._check_weights(state, module)
        with self._named():
            facts = read_facts(file_of(self.checkpoint), checkpoint, shape_of(found.state))
            said = [*found.report(), *mismatches(facts, module)]
        module.load_state_dict(state, strict=True)
        arrived = ', '.join([f'loaded (depth {module.num_layers}, width {module.embed_dims})',
                             *resized])
        report = '; '.join([f'all {len(state)} tensors of the {self.network} backbone {arrived}',
                            *said])
        print_log(f'{self.checkpoint}: {report}.', logger='current')

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Put the checkpoint's name before what is wrong with it."""
        try:
            yield
        except UserError as error:
            raise UserError(f'{self.checkpoint}: {error}') from None

    def _read(self) -> Any:
        path = str(self.checkpoint)
        if path.startswith(('http://', 'https://')):
            return load_from_http(path, 'cpu')
        if '://' in path:
            raise UserError(f'{path}: a backbone is read from a local file, http:// or https:// '
                            f'only; download it by other means, and {ADVICE}')
        if not Path(path).expanduser().exists():
            raise UserError(f'There is no pretrained checkpoint {path}: '
                            f'{how_to_make(path) or CONVERT}; or {ADVICE}')
        return load_checkpoint(file_of(path))

    def _check_weights(self, found: dict[str, Tensor], module: PerAViT) -> None:
        if broken := not_finite(found):
            raise UserError(f'{self.checkpoint} holds inf or nan in {len(broken)} tensors of the '
                            f'{self.network} backbone (first {broken[0]}); nothing was loaded: '
                            'take another checkpoint.')
        misfit = compare(found, module.state_dict())
        if not misfit:
            return
        depth = len({name.split('.')[1] for name in found if name.startswith('layers.')})
        raise UserError(
            f'{self.checkpoint} holds a ViT of depth {depth}, width {found["cls_token"].shape[-1]} '
            f'and patch {found["patch_embed.projection.weight"].shape[-1]}, the config has '
            f'depth {module.num_layers}, width {module.embed_dims} and patch {module.patch_size}: '
            f'{misfit}; nothing was loaded. Set arch and patch_size of the ViT to '
            "the checkpoint's, or take another checkpoint.")
