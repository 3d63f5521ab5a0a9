"""One scene's attention as one number a token: what a map or a film over the pictures shows."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.errors import HookNameError
from actlens.interventions import SceneRun
from actlens.model.act import HookedACT


@torch.no_grad()
def cross_weights(
    model: HookedACT,
    run: SceneRun,
    *,
    block: int = -1,
    head: int | None = None,
    positions: Sequence[int] = (),
) -> Float[np.ndarray, " token"]:
    """The share of a decoder block's attention that each token gets; they sum to one.

    Args:
        block: of the decoder; -1 is the last.
        head: of the block; the mean over heads if not given.
        positions: of the chunk, averaged; all if none are given.

    Raises:
        HookNameError: if there is no such block, head or position.
    """
    config = model.config
    block = _among(block, config.n_decoder_layers, "decoder block")
    asking = [_among(position, config.chunk, "chunk position") for position in positions]
    return _averaged(model, run[f"decoder.{block}.cross_attn.hook_pattern"][0], head, asking)


@torch.no_grad()
def encoder_weights(
    model: HookedACT,
    run: SceneRun,
    *,
    block: int = -1,
    head: int | None = None,
    asking: Sequence[int] = (),
) -> Float[np.ndarray, " token"]:
    """The share of an encoder block's attention that each token gets; they sum to one.

    Args:
        block: of the encoder; -1 is the last.
        head: as in `cross_weights`.
        asking: indices of the tokens that attend, averaged; all if none are given.

    Raises:
        HookNameError: if there is no such block, head or token.
    """
    block = _among(block, model.config.n_encoder_layers, "encoder block")
    tokens = [_among(token, len(model.tokens), "token") for token in asking]
    return _averaged(model, run[f"encoder.{block}.attn.hook_pattern"][0], head, tokens)


def _averaged(
    model: HookedACT, pattern: Float[Tensor, "head query token"], head: int | None, rows: list[int]
) -> Float[np.ndarray, " token"]:
    heads = pattern if head is None else pattern[_among(head, model.config.n_heads, "head")][None]
    chosen = heads[:, rows] if rows else heads
    return chosen.double().mean((0, 1)).numpy(force=True)


def _among(index: int, n: int, what: str) -> int:
    if not -n <= index < n:
        raise HookNameError(f"There is no {what} {index}; this policy has 0 to {n - 1}.")
    return index % n
