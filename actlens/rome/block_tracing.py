"""Causal tracing of whole MLPs: how much of a noised scene's action each of them carries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.engine import run
from actlens.interventions.scene_run import run_scene
from actlens.interventions.tracing import noisy_tokens, restored, token_spread
from actlens.metrics import project, rms
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.scene import Scene
from actlens.sites import Site


@dataclass(frozen=True)
class Tracing:
    """How scenes are corrupted, and what is restored."""

    multiple: float = 3.0
    """Noise in spreads of each kind of token over the scenes (Meng et al. 2022, section 2.1)."""
    n_noise: int = 3
    """Draws of the noise."""
    window: int = 1
    """Consecutive blocks whose MLPs are restored together; Meng et al. take ten of 48."""
    tokens: tuple[int, ...] = ()
    """That are noised; all that differ between scenes, if empty."""


@dataclass(frozen=True)
class TracedBlocks:
    """The share of the action that restoring a block's MLP gives back, and what was corrupted."""

    share: Float[np.ndarray, "scene block"]
    """Of the difference between the noised and the clean action, pooled over draws of the noise;
    NaN where the noise changes nothing."""
    corrupted: Float[np.ndarray, " scene"]
    """How far the noise moves the action: root mean square, normalised."""


def trace_blocks(
    model: HookedACT,
    scenes: Sequence[Scene],
    blocks: Sequence[str],
    positions: Sequence[Sequence[int]],
    options: Tracing | None = None,
) -> TracedBlocks:
    """Noise the tokens of every scene; give back, block by block, what its MLP writes.

    Args:
        positions: of the chunk, for every scene: where actions are compared.

    Raises:
        EditError: if there are fewer than two scenes, over which tokens could vary.
        InterventionError: if a token does not exist.
    """
    options = options or Tracing()
    if len(scenes) < 2:
        raise EditError("Causal tracing takes its noise from how tokens vary: give two scenes.")
    runs = [run_scene(model, scene) for scene in scenes]
    spread = token_spread(model, runs)
    tokens = options.tokens or _varying(model, spread)
    sites = [Site(MLPSite.of(model, block).output) for block in blocks]
    corruptions = [
        noisy_tokens(model, tokens, spread, multiple=options.multiple, seed=seed)
        for seed in range(options.n_noise)
    ]
    cells = [
        intervention
        for noise in corruptions
        for intervention in (
            noise,
            *(restored(model, noise, site, window=options.window) for site in sites),
        )
    ]
    share, corrupted = [], []
    for base, at in zip(runs, positions, strict=True):
        found = run(model, base, cells, {"clean": base}).actions[:, list(at)]
        noised, given_back = _by_draw(found, len(sites))
        clean = base.actions[list(at)]
        back = project(given_back, noised[:, None], clean)
        share.append(back.along.sum(0) / back.total.sum(0))
        corrupted.append(rms((noised - clean).double().flatten(0, 1)))
    return TracedBlocks(*(torch.stack(x).numpy(force=True) for x in (share, corrupted)))


def _by_draw(
    actions: Float[Tensor, "cell position joint"], n_sites: int
) -> tuple[Float[Tensor, "draw position joint"], Float[Tensor, "draw site position joint"]]:
    cells = actions.unflatten(0, (-1, 1 + n_sites))
    return cells[:, 0], cells[:, 1:]


def _varying(model: HookedACT, spread: dict[str, float]) -> tuple[int, ...]:
    """The tokens whose kind differs between scenes: all but the latent one."""
    return tuple(
        token.index for token in model.tokens.tokens if spread[token.camera or token.name] > 0
    )
