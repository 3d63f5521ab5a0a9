"""Activation patching between two scenes: which parts carry what differs between them?

Every part is patched by itself. Many patches share one forward: they resume at the stream entering
the part's encoder block, one batch row per patch, so that nothing before it is computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.hooks import HookPoint
from actlens.metrics import project, rms
from actlens.model.act import HookedACT
from actlens.scene import Scene, ScenePair
from actlens.statistics import false_discovery, pooled_ratio, sign_flip_p


class Direction(StrEnum):
    """What is run and what is put in; the two answer different questions, so both are reported."""

    DENOISE = "denoise"
    """Run the corrupt scene, put the clean activation in: is the part sufficient?"""
    NOISE = "noise"
    """Run the clean scene, put the corrupt activation in: is the part necessary?"""


class Unit(StrEnum):
    """What is patched together."""

    TOKEN = "token"
    GROUP = "group"
    """Several tokens at once: a camera, its cells where the two images differ, all tokens."""
    HEAD = "head"
    SUBLAYER = "sublayer"
    """A whole activation: every token, query and head of one hook point."""


@dataclass(frozen=True)
class Part:
    """One thing to patch: a hook point, what of it, and the encoder block where a run resumes."""

    hook: str
    unit: Unit
    resume_at: int
    """The encoder block the part lies in; the number of encoder layers for the decoder's."""
    label: str
    """`top[3,7]`, `state`, `top: cells that differ`, `head 3`, or empty for whole sublayers."""
    token: int | None = None
    head: int | None = None
    group: str | None = None


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
            Part(hook, Unit.TOKEN, depth, token.name, token=token.index)
            for token in model.tokens.tokens
        ]
        groups = [ALL_TOKENS]
        for camera in model.tokens.cameras:
            groups += [camera, f"{camera}: {CHANGED}", f"{camera}: {UNCHANGED}"]
        parts += [Part(hook, Unit.GROUP, depth, group, group=group) for group in groups]
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


def _heads(hook: str, resume_at: int, n_heads: int) -> list[Part]:
    return [Part(hook, Unit.HEAD, resume_at, f"head {head}", head=head) for head in range(n_heads)]


@dataclass(frozen=True)
class SweepOptions:
    """How the sweep is run; none of it changes what is measured."""

    batch_rows: int = 32
    """Patches that share one forward; more need larger temporaries, which cost page faults."""
    image_tolerance: int = 24
    """Largest channel difference (of 255) at which two pixels still count as the same."""
    min_effect: float = 1.0
    """Pairs whose actions differ by less (root mean square, dataset units) are left out."""


@dataclass(frozen=True)
class PairSweep:
    """Every part patched in one direction between one pair; arrays follow `parts_of(model)`.

    `along`, `moved` and `total` are the parts of the restored share (`actlens.metrics.Projection`);
    `site_change` and `output_change` are the receipts: the largest absolute change at the site and
    of the normalised actions. A part that a pair does not have (no differing cells) is NaN.
    """

    along: Float[np.ndarray, " part"]
    moved: Float[np.ndarray, " part"]
    site_change: Float[np.ndarray, " part"]
    output_change: Float[np.ndarray, " part"]
    total: float
    effect: float
    """Root mean square difference of the two scenes' actions, in dataset units."""


@dataclass(frozen=True)
class SceneRun:
    """One scene's forward: its actions, and the activations that patches read or resume from."""

    actions: Float[Tensor, "chunk joint"]
    """Normalised."""
    activations: Mapping[str, Float[Tensor, "batch ..."]]
    pos: Float[Tensor, "token d_model"]


def _streams(model: HookedACT) -> list[str]:
    """The hook points where runs resume: each encoder block's input, and the encoder's output."""
    blocks = [f"encoder.{i}.hook_resid_pre" for i in range(model.config.n_encoder_layers)]
    return [*blocks, "encoder.hook_out"]


@torch.no_grad()
def run_scene(model: HookedACT, scene: Scene, parts: Sequence[Part]) -> SceneRun:
    """Run a scene once and keep what patching `parts` needs of it, as base and as donor."""
    names = [*(part.hook for part in parts), *_streams(model)]
    names += ["embed.hook_pos", "hook_actions_normalized"]
    _, cache = model.run_with_cache(scene, names_filter=list(dict.fromkeys(names)))
    kept = dict(cache.activations)
    return SceneRun(kept["hook_actions_normalized"][0], kept, kept["embed.hook_pos"])


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


def _token_groups(model: HookedACT, pair: ScenePair, tolerance: int) -> dict[str, list[int]]:
    groups = {ALL_TOKENS: list(range(len(model.tokens)))}
    for camera, cells in differing_tokens(model, pair, tolerance).items():
        first = model.tokens.camera(camera).start
        groups[camera] = [first + i for i in range(len(cells))]
        groups[f"{camera}: {CHANGED}"] = [first + int(i) for i in np.flatnonzero(cells)]
        groups[f"{camera}: {UNCHANGED}"] = [first + int(i) for i in np.flatnonzero(~cells)]
    return groups


def _index(part: Part, point: HookPoint, groups: dict[str, list[int]]) -> tuple | None:
    """The part's index into an unbatched activation; None if this pair has no such part."""
    where: dict[str, int | list[int]] = {}
    if part.token is not None:
        where["token"] = part.token
    if part.head is not None:
        where["head"] = part.head
    if part.group is not None:
        where["token"] = groups[part.group]
        if not where["token"]:
            return None
    return point.index(where)[1:]


def _put(
    donor: Tensor, rows: Sequence[tuple[int, tuple]], activation: Tensor, hook: HookPoint
) -> Tensor:
    """Row by row, replace one part of the activation by the donor's."""
    for row, index in rows:
        activation[row][index] = donor[0][index]
    return activation


@torch.no_grad()
def sweep_pair(
    model: HookedACT,
    base: SceneRun,
    donor: SceneRun,
    target: SceneRun,
    *,
    groups: dict[str, list[int]],
    parts: Sequence[Part],
    options: SweepOptions,
    advance: Callable[[int], None] = lambda n: None,
) -> PairSweep:
    """Patch every part of `donor` into `base`, and project on the difference `base -> target`.

    For denoising base is the corrupt scene's run and donor = target the clean one's. For the null
    the donor is another scene's than the target.

    Args:
        groups: token indices by group name, for parts with a group.
        advance: told how many patches were done, for progress bars.
    """
    streams = _streams(model)
    goal = target.actions
    n = len(parts)
    along, moved = np.full(n, np.nan), np.full(n, np.nan)
    site_change, output_change = np.full(n, np.nan), np.full(n, np.nan)
    whole = project(goal, base.actions, goal)
    by_start: dict[int, list[tuple[int, tuple]]] = {}
    for i, part in enumerate(parts):
        index = _index(part, model.hook_point(part.hook), groups)
        if index is not None:
            by_start.setdefault(part.resume_at, []).append((i, index))
    for layer, chosen in by_start.items():
        for at in range(0, len(chosen), options.batch_rows):
            batch = chosen[at : at + options.batch_rows]
            per_hook: dict[str, list[tuple[int, tuple]]] = {}
            for row, (i, index) in enumerate(batch):
                per_hook.setdefault(parts[i].hook, []).append((row, index))
                given, was = (r.activations[parts[i].hook][0][index] for r in (donor, base))
                site_change[i] = float((given - was).abs().max())
            edits = [
                (hook, partial(_put, donor.activations[hook], rows))
                for hook, rows in per_hook.items()
            ]
            resid = base.activations[streams[layer]].expand(len(batch), -1, -1)
            with model.hooks(fwd_hooks=edits):
                actions = model.resume_normalized(resid, base.pos, layer=layer)
            shares = project(actions, base.actions, goal)
            which = [i for i, _ in batch]
            along[which] = shares.along.numpy(force=True)
            moved[which] = shares.moved.numpy(force=True)
            output_change[which] = (actions - base.actions).abs().amax((-1, -2)).numpy(force=True)
            advance(len(batch))
    advance(n - sum(map(len, by_start.values())))
    effect = action_difference(model, target, base)
    return PairSweep(along, moved, site_change, output_change, float(whole.total), effect)


@dataclass(frozen=True)
class PatchingResult:
    """Both directions and the null, over all pairs that count.

    `frame()` is the table people read; `per_pair()` the numbers behind it.
    """

    parts: tuple[Part, ...]
    sweeps: dict[Direction, tuple[PairSweep, ...]]
    null: tuple[PairSweep, ...]
    """Denoising with a donor that shares the corrupt scene's value and nothing else."""
    pairs: tuple[ScenePair, ...]
    """The pairs that were patched, in the order of the sweeps."""
    left_out: tuple[tuple[ScenePair, float], ...]
    """Pairs whose actions differ too little to be restored, with that difference."""
    differs_in: str
    cameras: dict[str, tuple[int, int]]
    """Token grid (rows, columns) by camera name."""
    options: SweepOptions
    seed: int = 0

    def per_pair(self) -> pd.DataFrame:
        """One row per direction (and null), pair and part: restored share, off-axis, receipts."""
        rows = []
        runs = [(direction.value, sweeps) for direction, sweeps in self.sweeps.items()]
        for name, sweeps in [*runs, ("null", self.null)]:
            for number, (pair, sweep) in enumerate(zip(self.pairs, sweeps, strict=False)):
                orthogonal = np.clip(sweep.moved - sweep.along**2 / sweep.total, 0, None)
                rows.append(
                    self._labels().assign(
                        direction=name,
                        pair=number,
                        clean=pair.clean.address,
                        corrupt=pair.corrupt.address,
                        restored=sweep.along / sweep.total,
                        off_axis=np.sqrt(orthogonal / sweep.total),
                        site_change=sweep.site_change,
                        output_change=sweep.output_change,
                    )
                )
        return pd.concat(rows, ignore_index=True)

    def frame(self) -> pd.DataFrame:
        """One row per part: pooled shares with 95 % intervals over pairs, the null, p and q.

        Columns `denoise`, `noise`, `null` (each with `_low`, `_high`), `off_axis`, `p` (sign flips
        of pairs, denoise against null), `q` (Benjamini-Hochberg over all parts), `site_change` and
        `output_change` (largest over pairs). Intervals are missing below five pairs, p and q where
        there is no null.
        """
        table = self._labels()
        for direction, sweeps in self.sweeps.items():
            self._pooled(table, direction.value, sweeps)
        denoise = self.sweeps[Direction.DENOISE]
        moved = np.stack([s.moved for s in denoise], 1)
        along, total = self._stacked(denoise)
        off = np.sqrt(np.clip(moved - along**2 / total, 0, None) / total)
        table["off_axis"] = _nanmean(off)
        table["site_change"] = _nanmax(np.stack([s.site_change for s in denoise], 1))
        table["output_change"] = _nanmax(np.stack([s.output_change for s in denoise], 1))
        if self.null:
            self._pooled(table, "null", self.null)
            null_along, null_total = self._stacked(self.null)
            usable = np.isfinite(along).all(1) & np.isfinite(null_along).all(1)
            difference = (along / total - null_along / null_total)[usable]
            p, q = np.full(len(along), np.nan), np.full(len(along), np.nan)
            if difference.shape[1] >= 2:
                p[usable] = sign_flip_p(difference, seed=self.seed)
                q[usable] = false_discovery(p[usable])
            table["p"], table["q"] = p, q
        return table

    def heatmap(
        self,
        camera: str,
        hook: str,
        direction: Direction = Direction.DENOISE,
        pair: int | None = None,
    ) -> Float[np.ndarray, "row col"]:
        """Restored share of every token of one camera at one hook point, pooled or of one pair."""
        chosen = [
            i
            for i, part in enumerate(self.parts)
            if part.hook == hook and part.token is not None and part.label.startswith(f"{camera}[")
        ]
        sweeps = self.sweeps[direction] if pair is None else self.sweeps[direction][pair : pair + 1]
        along, total = self._stacked(sweeps)
        return (along.sum(1) / total.sum(1))[chosen].reshape(self.cameras[camera])

    def _labels(self) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "hook": part.hook,
                    "unit": part.unit.value,
                    "part": part.label,
                    "depth": part.resume_at,
                    "token": part.token,
                    "head": part.head,
                }
                for part in self.parts
            ]
        ).astype({"token": "Int64", "head": "Int64"})

    def _stacked(self, sweeps: Sequence[PairSweep]) -> tuple[np.ndarray, np.ndarray]:
        along = np.stack([sweep.along for sweep in sweeps], 1)
        return along, np.asarray([[sweep.total for sweep in sweeps]])

    def _pooled(self, table: pd.DataFrame, name: str, sweeps: Sequence[PairSweep]) -> None:
        along, total = self._stacked(sweeps)
        columns = np.full((3, len(along)), np.nan)
        # Parts that some pair does not have are pooled over the pairs that do.
        for having in np.unique(np.isfinite(along), axis=0):
            rows = (np.isfinite(along) == having).all(1)
            if having.any():
                pooled = pooled_ratio(along[rows][:, having], total[:, having], seed=self.seed)
                columns[:, rows] = pooled.estimate, pooled.low, pooled.high
        table[name], table[f"{name}_low"], table[f"{name}_high"] = columns


def _nanmean(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    count = finite.sum(1)
    return np.where(count > 0, np.where(finite, values, 0).sum(1) / np.maximum(count, 1), np.nan)


def _nanmax(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values).any(1), np.nan_to_num(values, nan=-np.inf).max(1), np.nan)


def action_difference(model: HookedACT, one: SceneRun, other: SceneRun) -> float:
    """Root mean square difference of two scenes' action chunks, in dataset units."""
    first, second = (model.normalizer.unnormalize(ACTION_KEY, run.actions) for run in (one, other))
    return float(rms(first - second))


def patch_pairs(
    model: HookedACT,
    pairs: Sequence[ScenePair],
    *,
    options: SweepOptions | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PatchingResult:
    """Patch every part of every pair in both directions, and the null if all pairs have donors.

    Args:
        pairs: from independent episodes; each is one cluster of the intervals.
        progress: called with (patches done, patches in all).

    Raises:
        SceneError: if no pair is left whose two action chunks differ enough.
    """
    options = options or SweepOptions()
    with_null = all(pair.unrelated_corrupt is not None for pair in pairs)
    parts = parts_of(model)
    per_pair = len(parts) * (3 if with_null else 2)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, per_pair * len(pairs))

    sweeps: dict[Direction, list[PairSweep]] = {direction: [] for direction in Direction}
    null, kept, left_out = [], [], []
    for pair in pairs:
        clean, corrupt = (run_scene(model, scene, parts) for scene in (pair.clean, pair.corrupt))
        effect = action_difference(model, clean, corrupt)
        if effect < options.min_effect:
            left_out.append((pair, effect))
            advance(per_pair)
            continue
        kept.append(pair)
        groups = _token_groups(model, pair, options.image_tolerance)
        sweep = partial(
            sweep_pair, model, groups=groups, parts=parts, options=options, advance=advance
        )
        sweeps[Direction.DENOISE].append(sweep(corrupt, clean, clean))
        sweeps[Direction.NOISE].append(sweep(clean, corrupt, corrupt))
        if with_null and pair.unrelated_corrupt is not None:
            unrelated = run_scene(model, pair.unrelated_corrupt, parts)
            null.append(sweep(corrupt, unrelated, clean))
    if not kept:
        largest = max((effect for _, effect in left_out), default=0.0)
        raise SceneError(
            f"The two actions of {'the pair' if len(pairs) == 1 else f'all {len(pairs)} pairs'} "
            f"differ by less than {options.min_effect:g} (largest {largest:.3g}), "
            "so there is nothing to restore: choose scenes that differ more, or lower min_effect."
        )
    return PatchingResult(
        parts,
        {direction: tuple(done_sweeps) for direction, done_sweeps in sweeps.items()},
        tuple(null),
        tuple(kept),
        tuple(left_out),
        kept[0].differs_in,
        {camera: model.tokens.grid(camera) for camera in model.tokens.cameras},
        options,
        seed,
    )
