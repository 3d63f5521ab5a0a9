"""The ResNet trunk that every camera shares, and the fixed positions of its output grid."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actlens.config import ACTConfig

STAGES = ("layer1", "layer2", "layer3", "layer4")


def resnet_trunk(config: ACTConfig, *, frozen_norm: bool = True) -> nn.ModuleDict:
    """torchvision's ResNet without pooling and classifier, under torchvision's own parameter names.

    Args:
        frozen_norm: `FrozenBatchNorm2d` as in every ACT checkpoint; False gives trainable
            `BatchNorm2d`, whose statistics fold into the frozen form unchanged.
    """
    # Imported here: torchvision takes longer to import than the rest of actlens together.
    import torchvision
    from torchvision.ops import FrozenBatchNorm2d

    resnet = getattr(torchvision.models, config.backbone.value)(
        weights=None,
        norm_layer=FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d,
        replace_stride_with_dilation=[False, False, config.dilation],
    )
    names = ("conv1", "bn1", "relu", "maxpool", *STAGES)
    return nn.ModuleDict({name: getattr(resnet, name) for name in names})


def grid_position(rows: int, cols: int, d_model: int) -> Float[Tensor, "token d_model"]:
    """Sinusoidal positions of a grid, row by row: half of the width for y, then half for x.

    LeRobot's and DETR's: positions count from 1 and are scaled to (0, 2 pi]; sines and cosines
    interleave.
    """
    half = d_model // 2
    inverse = 10000 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)

    def encode(n: int) -> Tensor:
        count = torch.ones(n).cumsum(0, dtype=torch.float32)
        angle = (count / (count[-1:] + 1e-6) * (2 * math.pi))[:, None] / inverse
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)

    y = encode(rows)[:, None].expand(rows, cols, half)
    x = encode(cols)[None].expand(rows, cols, half)
    return torch.cat((y, x), -1).reshape(rows * cols, d_model)
