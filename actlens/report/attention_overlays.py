"""Attention as maps to look into, by head and chunk position, beside what each token is worth."""

import numpy as np
from jaxtyping import Float

from actlens.attention.effects import SceneEffects
from actlens.page import Axis, Overlays
from actlens.report.token_views import token_views
from actlens.scene import Scene
from actlens.tokens import TokenMap

_MEAN = "mean"


def decoder_overlays(
    tokens: TokenMap,
    scene: Scene,
    pattern: Float[np.ndarray, "layer head query token"],
    effects: SceneEffects,
) -> Overlays:
    """Cross-attention of every head at every chunk position.

    Args:
        pattern: of one scene.
        effects: of the same scene; their weights average positions.
    """
    layers, heads, queries, _ = pattern.shape
    counted = effects.reading.counted
    mean = np.einsum("q,lhqt->lht", counted / counted.sum(), pattern)[:, :, None]
    values = np.concatenate([mean, pattern], 2)
    values = np.concatenate([values.mean(1, keepdims=True), values], 1)
    axes = [
        Axis("head", (_MEAN, *map(str, range(heads))), ordered=False),
        Axis("chunk position", (_MEAN, *map(str, range(queries)))),
    ]
    if layers > 1:
        values = np.concatenate([values.mean(0, keepdims=True), values])
        axes.insert(0, Axis("decoder block", (_MEAN, *map(str, range(layers))), ordered=False))
    else:
        values = values[0]
    views, bars = token_views(tokens, values, [scene])
    pixels = np.concatenate([view.values.ravel() for view in views])
    return Overlays(
        title="What the action queries attend to",
        views=views,
        axes=tuple(axes),
        bars=bars,
        unit="share of the attention",
        limit=float(np.quantile(pixels, 0.999)) or None,
        caption="Attention says where queries look, not what the action depends on: see the exact "
        "effect of leaving each token out.",
    )


def effect_overlays(tokens: TokenMap, scene: Scene, effects: SceneEffects) -> Overlays:
    """How far the action moves without each token, at every chunk position."""
    values = np.concatenate([effects.averaged[None], effects.importance.T])
    views, bars = token_views(tokens, values, [scene])
    pixels = np.concatenate([view.values.ravel() for view in views])
    return Overlays(
        title="What each token is worth: how far the action moves without it",
        views=views,
        axes=(Axis("chunk position", (_MEAN, *map(str, range(len(values) - 1)))),),
        bars=bars,
        unit="root mean square over joints, dataset units",
        limit=float(np.quantile(pixels, 0.999)) or None,
        caption="Exact: the token is left out of the decoder's cross-attention, and the attention "
        "to the others grows to sum to one.",
    )


def encoder_overlays(
    tokens: TokenMap,
    scene: Scene,
    pattern: Float[np.ndarray, "layer head query token"],
) -> Overlays:
    """Self-attention of the encoder's blocks: of all tokens, and of each that is no pixel."""
    layers, heads = pattern.shape[:2]
    vectors = tokens.config.n_vector_tokens
    asking = np.concatenate([pattern.mean(2, keepdims=True), pattern[:, :, :vectors]], 2)
    values = np.concatenate([asking.mean(1, keepdims=True), asking], 1)
    views, bars = token_views(tokens, values, [scene])
    pixels = np.concatenate([view.values.ravel() for view in views])
    return Overlays(
        title="What the encoder's tokens attend to",
        views=views,
        axes=(
            Axis("encoder block", tuple(map(str, range(layers)))),
            Axis("head", (_MEAN, *map(str, range(heads))), ordered=False),
            Axis("asking", ("all tokens, mean", *tokens.names[:vectors]), ordered=False),
        ),
        bars=bars,
        unit="share of the attention",
        limit=float(np.quantile(pixels, 0.999)) or None,
    )
