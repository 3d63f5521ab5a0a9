"""Restored shares of single tokens as maps to look into: by pair, depth, direction and joint."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from actlens.metrics import Direction
from actlens.page import Axis, Overlays
from actlens.patching import PatchingResult, Unit
from actlens.patching.sweep import PairSweep
from actlens.report.token_views import token_views
from actlens.text import clean_text
from actlens.tokens import TokenMap

_MOST_VALUES, _MOST_PAIRS = 1_500_000, 64
"""Of one page, which stays below 5 MB with them."""
_MEANING = {
    Direction.DENOISE: "denoise: one clean token put into the corrupt run",
    Direction.NOISE: "noise: one corrupt token put into the clean run",
}
_NULL = "null: as denoise, the token from an unrelated scene"


def patching_overlays(result: PatchingResult, tokens: TokenMap) -> Overlays | None:
    """The share of the action difference that every token restores, over what the cameras saw.

    The first entry of the pairs pools them all, over the pictures of the first. Joints' shares add
    up to that of all joints. None for a policy without cameras.
    """
    if not tokens.config.cameras:
        return None
    sweeps = {_MEANING[direction]: found for direction, found in result.sweeps.items()}
    sweeps |= {_NULL: result.null} if result.null else {}
    hooks = list(dict.fromkeys(part.hook for part in result.parts if part.unit is Unit.TOKEN))
    joints = result.joint_names
    each = len(hooks) * len(sweeps) * (1 + len(joints)) * len(tokens)
    n = max(1, min(len(result.pairs), _MOST_PAIRS, _MOST_VALUES // each))
    order = _order(result, hooks)
    values = np.stack([_by_pair(found, n, order, len(joints)) for found in sweeps.values()], 2)
    shown = result.pairs[:n]
    names = [f"{pair.clean.address} / {pair.corrupt.address}" for pair in shown]
    pooled = f"pooled over {len(result.pairs)}"
    scenes = [scene for pair in (shown[0], *shown) for scene in (pair.corrupt, pair.clean)]
    views, bars = token_views(tokens, values[:, None], scenes, along=("pair", "picture"))
    left = f" The first {n} of {len(result.pairs)} pairs." if n < len(result.pairs) else ""
    return Overlays(
        title="Share of the action difference restored by one token",
        views=views,
        axes=(
            Axis("pair", (pooled, *names), start=min(1, n)),
            Axis("picture", ("corrupt", "clean"), ordered=False),
            Axis("depth", tuple(map(_depth, hooks))),
            Axis("direction", tuple(sweeps), ordered=False),
            Axis("joint", ("all joints", *map(_joint, joints)), ordered=False),
        ),
        bars=bars,
        unit="share (0 nothing, 1 all)",
        signed=True,
        limit=_limit(views),
        caption="Pairs are named clean / corrupt, EPISODE:FRAME. Of a joint: what it adds to the "
        f"share of all joints. Intervals over pairs, nulls and q are in the tables below.{left}",
    )


def _order(result: PatchingResult, hooks: Sequence[str]) -> np.ndarray:
    """Indices of the parts that are single tokens, `depth token`."""
    found: dict[str, list[tuple[int, int]]] = {hook: [] for hook in hooks}
    for i, part in enumerate(result.parts):
        if part.unit is Unit.TOKEN:
            assert part.token is not None
            found[part.hook].append((part.token, i))
    return np.array([[i for _, i in sorted(rows)] for rows in found.values()])


def _by_pair(
    sweeps: Sequence[PairSweep], n: int, order: np.ndarray, n_joints: int
) -> Float[np.ndarray, "pair depth joint token"]:
    """Shares of the pool of all pairs, then of the first n; all joints, then each."""
    along: Callable[[PairSweep], np.ndarray] = lambda s: np.concatenate(
        [s.along[order][:, None], np.moveaxis(s.joint_along[order][..., :n_joints], -1, 1)], 1
    )
    pooled = sum(along(sweep) for sweep in sweeps) / sum(sweep.total for sweep in sweeps)
    return np.stack([pooled, *(along(sweep) / sweep.total for sweep in sweeps[:n])])


def _limit(views: Sequence) -> float:
    """A scale that a few tokens of one pair do not spoil for the rest."""
    values = np.abs(np.concatenate([view.values.ravel() for view in views]))
    return max(0.05, float(np.nanquantile(values, 0.999)))


def _depth(hook: str) -> str:
    if hook == "encoder.hook_out":
        return "encoder's output"
    layer = hook.split(".")[1]
    return "input tokens" if layer == "0" else f"into block {layer}"


def _joint(name: str) -> str:
    return clean_text(name.removesuffix(".pos"))
