"""What a sweep patches: every token at every depth, every head, every sublayer."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from actlens.model.act import HookedACT
from actlens.scene import ScenePair
from actlens.sites import Site


class Unit(StrEnum):
    """What is patched together."""

    TOKEN = "token"
    GROUP = "group"
    """Several tokens at once: a camera, its cells where the two images differ, all tokens."""
    HEAD = "head"
    SUBLAYER = "sublayer"
    """A whole activation: every token, query and head of one hook point."""
    NEURON = "neuron"
    """One hidden unit of an MLP, at every token or query."""


@dataclass(frozen=True)
class Part:
    """One thing to patch: a hook point, what of it, the depth at which it lies, and its labels."""

    hook: str
    unit: Unit
    depth: int
    """The encoder block the part lies in; the number of encoder layers for the decoder's."""
    label: str
    """A token's name (`top[3,7]`, `state`), `top: cells that differ`, `head 3`; empty for whole
    sublayers."""
    token: int | None = None
    head: int | None = None
    group: str | None = None
    neuron: int | None = None
    camera: str | None = None
    """Of a pixel token, or of a group of them."""
    row: int | None = None
    """Of a pixel token in its camera's grid, from the top."""
    col: int | None = None

    @property
    def stack(self) -> str:
        """The part of the network: `encoder` or `decoder`."""
        return self.hook.split(".")[0]

    @property
    def layer(self) -> int | None:
        """The layer of its stack; None for the encoder's output."""
        numbers = [int(word) for word in self.hook.split(".") if word.isdecimal()]
        return numbers[0] if numbers else None

    @property
    def address(self) -> str | None:
        """As `HookedACT.site` takes it; None for groups whose tokens differ between pairs."""
        if self.token is not None or (self.group is not None and self.group == self.camera):
            return f"{self.hook}[{self.label}]"
        if self.group is not None:
            return self.hook if self.group == ALL_TOKENS else None
        return str(self.site({}))

    @property
    def labels(self) -> dict[str, str | int | None]:
        """What identifies it in tables, by column."""
        return {
            "hook": self.hook,
            "unit": self.unit.value,
            "part": self.label,
            "site": self.address,
            "stack": self.stack,
            "layer": self.layer,
            "depth": self.depth,
            "token": self.token,
            "camera": self.camera,
            "row": self.row,
            "col": self.col,
            "head": self.head,
            "neuron": self.neuron,
        }

    def site(self, groups: Mapping[str, tuple[int, ...]]) -> Site | None:
        """Its address for one scene pair, whose token groups are given; None if it has no such."""
        if self.token is not None:
            return Site(self.hook, {"token": self.token})
        if self.head is not None:
            return Site(self.hook, {"head": self.head})
        if self.neuron is not None:
            return Site(self.hook, {"neuron": self.neuron})
        if self.group is not None:
            return Site(self.hook, {"token": groups[self.group]}) if groups[self.group] else None
        return Site(self.hook)


CHANGED, UNCHANGED, ALL_TOKENS = "cells that differ", "other cells", "all tokens"


def parts_of(model: HookedACT) -> tuple[Part, ...]:
    """Every token at every depth of the encoder, every head, every sublayer's write.

    Depths are the streams entering each encoder block, and the encoder's output.
    """
    n_layers = model.config.n_encoder_layers
    streams = [f"encoder.{layer}.hook_resid_pre" for layer in range(n_layers)]
    parts: list[Part] = []
    for depth, hook in enumerate([*streams, "encoder.hook_out"]):
        parts += [
            Part(hook, Unit.TOKEN, depth, t.name, t.index, camera=t.camera, row=t.row, col=t.col)
            for t in model.tokens.tokens
        ]
        parts.append(Part(hook, Unit.GROUP, depth, ALL_TOKENS, group=ALL_TOKENS))
        parts += [
            Part(hook, Unit.GROUP, depth, group, group=group, camera=camera)
            for camera in model.tokens.cameras
            for group in (camera, f"{camera}: {CHANGED}", f"{camera}: {UNCHANGED}")
        ]
    for layer in range(n_layers):
        block = f"encoder.{layer}"
        parts += _heads(f"{block}.attn.hook_z", layer, model.config.n_heads)
        parts += [
            Part(f"{block}.{name}", Unit.SUBLAYER, layer, "")
            for name in ("hook_attn_out", "mlp.hook_post", "hook_mlp_out")
        ]
    for layer in range(model.config.n_decoder_layers):
        block = f"decoder.{layer}"
        parts += _heads(f"{block}.cross_attn.hook_z", n_layers, model.config.n_heads)
        parts += [
            Part(f"{block}.{name}", Unit.SUBLAYER, n_layers, "")
            for name in (
                "hook_attn_out",
                "cross_attn.hook_pattern",
                "cross_attn.hook_v",
                "hook_cross_attn_out",
                "hook_normalized_resid_mid_cross",
                "mlp.hook_post",
                "hook_mlp_out",
            )
        ]
    return tuple(parts)


def _heads(hook: str, depth: int, n_heads: int) -> list[Part]:
    return [Part(hook, Unit.HEAD, depth, f"head {head}", head=head) for head in range(n_heads)]


def differing_tokens(
    model: HookedACT, pair: ScenePair, tolerance: int
) -> dict[str, Bool[np.ndarray, " pixel"]]:
    """For each camera, which of its tokens' cells show different pixels in the two scenes."""
    found = {}
    stride = 16 if model.config.dilation else 32
    for camera in model.config.cameras:
        a, b = (_as_bytes(s.observation[camera.key]) for s in (pair.clean, pair.corrupt))
        different = ((a - b).abs() > tolerance).any(0)
        rows, cols = model.config.grid(camera)
        padded = torch.zeros(rows * stride, cols * stride, dtype=torch.bool)
        padded[: camera.height, : camera.width] = different
        cells = padded.reshape(rows, stride, cols, stride).any(3).any(1)
        found[camera.name] = cells.flatten().numpy()
    return found


def _as_bytes(image: Tensor) -> Tensor:
    image = image[0] if image.ndim == 4 else image
    return image.int() if image.dtype == torch.uint8 else (image * 255).round().int()


def token_groups(model: HookedACT, pair: ScenePair, tolerance: int) -> dict[str, tuple[int, ...]]:
    """The tokens of each group, for one pair of scenes."""
    groups = {ALL_TOKENS: tuple(range(len(model.tokens)))}
    for camera, cells in differing_tokens(model, pair, tolerance).items():
        first = model.tokens.camera(camera).start
        groups[camera] = tuple(first + i for i in range(len(cells)))
        groups[f"{camera}: {CHANGED}"] = tuple(first + int(i) for i in np.flatnonzero(cells))
        groups[f"{camera}: {UNCHANGED}"] = tuple(first + int(i) for i in np.flatnonzero(~cells))
    return groups
