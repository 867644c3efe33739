"""The projector g of fig. 2a: [cls] to prototype scores."""

from pera_mm.errors import UserError
from pera_mm.models.heads.cosine_head import CosineHead
from pera_mm.registry import MODELS


@MODELS.register_module()
class PrototypeHead(CosineHead):
    """The head for scores of K prototypes, ``[..., D]`` to ``[..., K]`` (reference: cls_head.py).

    Args:
        in_channels: width D of the backbone.
        num_prototypes: K.
        hidden_channels: width of the two hidden layers.
        bottleneck_channels: width in which features and prototypes are compared.
        norm_last_layer: True keeps every prototype at length 1 (DINO); the reference's PerA
            trains the lengths.

    Raises:
        ValueError: without a prototype.
    """

    def __init__(self, in_channels: int, num_prototypes: int = 131072, hidden_channels: int = 2048,
                 bottleneck_channels: int = 384, norm_last_layer: bool = False) -> None:
        if num_prototypes < 1:
            raise UserError(f'num_prototypes is {num_prototypes}: give 1 or more.')
        super().__init__(in_channels, num_prototypes, hidden_channels, bottleneck_channels,
                         norm_last_layer)
