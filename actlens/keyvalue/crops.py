"""The part of a camera's picture that an entry is about."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene, stack
from actlens.tokens import PixelRect, TokenMap


@dataclass(frozen=True)
class Crop:
    """A window of one camera's picture."""

    rect: PixelRect
    picture: UInt8[np.ndarray, "h w 3"]


@torch.no_grad()
def crops(
    model: HookedACT, block: str, scene: Scene, position: int, *, cells: int = 3
) -> tuple[Crop, ...]:
    """What the cameras show where an entry looks.

    For an encoder's pixel token that is around its own cell. For a chunk position, of every camera
    around the token that it attends to most in the block's cross-attention, all heads together.
    Tokens that are not pixels look nowhere.

    Args:
        cells: the window's height and width in tokens.
    """
    site, tokens = MLPSite.of(model, block), model.tokens
    if not site.in_decoder:
        found = [] if tokens[position].camera is None else [position]
    else:
        name = f"{block}.cross_attn.hook_pattern"
        pattern = model.run_with_cache(stack([scene]), names_filter=name)[1][name]
        looked = pattern[0, :, position].mean(0)
        spans = [tokens.camera(camera) for camera in tokens.cameras]
        found = [span.start + int(looked[span].argmax()) for span in spans]
    return tuple(_crop(scene, tokens, token, cells) for token in found)


def _crop(scene: Scene, tokens: TokenMap, index: int, cells: int) -> Crop:
    token = tokens[index]
    assert token.camera is not None
    assert token.row is not None
    assert token.col is not None
    rows, cols = tokens.grid(token.camera)
    span = lambda at, n: (
        max(0, min(at - cells // 2, n - cells)),
        min(n, max(cells, at + 1 + cells // 2)),
    )
    (top, bottom), (left, right) = span(token.row, rows), span(token.col, cols)
    rect = tokens.rect(f"{token.camera}[{top}:{bottom}, {left}:{right}]")
    key = next(c.key for c in tokens.config.cameras if c.name == token.camera)
    image = scene.observation[key]
    image = (image * 255).round() if image.is_floating_point() else image
    window = image[:, rect.top : rect.bottom, rect.left : rect.right]
    return Crop(rect, window.to("cpu", torch.uint8).permute(1, 2, 0).numpy())


def _span(at: int, n: int, cells: int) -> tuple[int, int]:
    """So many cells around one, moved inside where they would leave the picture."""
    first = max(0, min(at - cells // 2, n - cells))
    return first, min(n, first + cells)
