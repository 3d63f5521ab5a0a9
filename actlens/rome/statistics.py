"""The second moment of an MLP's keys over data: what an edit should leave as it is."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import DataHash, Digests, digests_of, upstream_sha256
from actlens.rome.moments import EpisodeMoments, KeySample
from actlens.rome.ridge import RidgeCurve, held_out_drift
from actlens.scene import Scene, stack

MAX_POSITIONS = 64
"""Positions that are counted of a scene: neighbouring tokens say nearly the same, and the products
of all 602 tokens of a large policy would cost a fifth of its forward."""
SAMPLE_SIZE = 256
Watch = Callable[[Sequence[Scene], Mapping[str, Float[Tensor, "scene position neuron"]]], None]


@dataclass(frozen=True)
class KeyStatistics:
    """C = E[h h^T] of one MLP's keys h, uncentred (Meng et al. 2022, section 3.1).

    Every episode weighs the same, and so does every key within an episode. Keys at chunk positions
    that only repeat a demonstration's last action are left out.
    """

    site: MLPSite
    moment: Float[Tensor, "neuron neuron"]
    """C, in float64."""
    sample: Float[Tensor, "sample neuron"]
    """Some of the keys, each from a scene of its own: what an edit moves can be read off them."""
    sampled_from: Int[Tensor, "sample 3"]
    """Episode, frame and position of each of them."""
    action_span: Float[Tensor, "2 joint"]
    """The lowest and highest demonstrated action of each joint, in dataset units; without joints
    where the scenes come without actions."""
    n_keys: int
    n_frames: int
    n_episodes: int
    ridge_curve: RidgeCurve
    """What the ridge is chosen by."""
    upstream_sha256: str
    """Of the weights that the keys depend on."""
    data_sha256: str
    """Of the scenes' observations, in their order."""
    source: str = ""
    """Where the scenes come from."""

    @property
    def n_active(self) -> int:
        """Neurons that were active at least once."""
        return int((self.moment.diagonal() > 0).sum())

    def require_fits(self, digests: Digests) -> None:
        """Refuse a policy in which the same scenes have other keys.

        Raises:
            EditError: if the weights that the keys depend on are not those of then.
        """
        found = upstream_sha256(digests, self.site)
        if found != self.upstream_sha256:
            raise EditError(
                f"These key statistics of {self.site.block} belong to other weights: up to its "
                f"keys they were {self.upstream_sha256[:12]}, this policy's are {found[:12]}. "
                "Collect them again with key_statistics."
            )


def key_statistics(
    model: HookedACT,
    scenes: Iterable[Scene],
    block: str,
    *,
    batch_size: int = 8,
    max_positions: int = MAX_POSITIONS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> KeyStatistics:
    """Stream over scenes and keep the second moment of an MLP's keys.

    It costs their forwards and a few percent; memory does not grow with their number.

    Args:
        scenes: episode by episode: `dataset.scenes(chunk=50, frames=slice(None, None, 10))`.
        block: `decoder.0`, `encoder.2`, ….
        max_positions: where the MLP works at more positions, so many are drawn from every scene.
        seed: of the positions and of the sample.
        progress: told how many scenes were done, batch by batch.

    Raises:
        EditError: if there are fewer keys than active neurons, if an episode comes in pieces, or
            if the model is in training mode.
        HookNameError: if the model has no such block.
        SceneError: if a scene does not fit the policy.
    """
    (found,) = key_statistics_of(
        model,
        scenes,
        [block],
        batch_size=batch_size,
        max_positions=max_positions,
        seed=seed,
        progress=progress,
    )
    return found


@torch.no_grad()
def key_statistics_of(
    model: HookedACT,
    scenes: Iterable[Scene],
    blocks: Sequence[str],
    *,
    batch_size: int = 8,
    max_positions: int = MAX_POSITIONS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n_scenes: None,
    watch: Watch = lambda scenes, keys: None,
) -> tuple[KeyStatistics, ...]:
    """The key statistics of several MLPs from one forward of every scene.

    Each is what `key_statistics` gives for its block, with the same options and errors.

    Args:
        watch: told every batch of scenes, and their keys by block.
    """
    if model.training:
        raise EditError("The model is in training mode, where dropout is random: call `eval()`.")
    gathered = [_Gathered(model, MLPSite.of(model, block), max_positions, seed) for block in blocks]
    names = [one.site.keys for one in gathered]
    data, source, n_frames = DataHash(), "", 0
    spans: list[Tensor] = []
    stream = iter(scenes)
    while batch := list(islice(stream, batch_size)):
        _, cache = model.run_with_cache(stack(batch), names_filter=names)
        for one in gathered:
            one.add(batch, cache[one.site.keys])
        watch(batch, {one.site.block: cache[one.site.keys] for one in gathered})
        for scene in batch:
            data.add(scene)
        spans += [_span(scene.action) for scene in batch if scene.action is not None]
        source, n_frames = batch[0].source, n_frames + len(batch)
        progress(len(batch))
    span = _span(torch.cat(spans)) if spans else torch.zeros(2, 0)
    digests, data_sha256 = digests_of(model), data.sha256()
    return tuple(one.statistics(n_frames, span, digests, data_sha256, source) for one in gathered)


class _Gathered:
    """What streams by at one MLP."""

    def __init__(self, model: HookedACT, site: MLPSite, max_positions: int, seed: int):
        self.site, self._max_positions = site, max_positions
        self._generator = torch.Generator().manual_seed(seed)
        self._moments = EpisodeMoments(site.layer(model).weight)
        self._sample = KeySample(SAMPLE_SIZE, self._generator)

    def add(self, batch: Sequence[Scene], keys: Float[Tensor, "scene position neuron"]) -> None:
        """Count the keys of some scenes."""
        rows = zip(batch, keys, strict=True)
        for episode, members in groupby(rows, key=lambda row: (row[0].source, row[0].episode)):
            self._moments.enter(episode)
            kept = []
            for scene, own in members:
                counted = _counted(scene, self.site, own, self._max_positions, self._generator)
                if len(counted):
                    self._sample.offer(own, counted, scene, self._moments.half)
                kept.append(own[counted])
            self._moments.add(torch.cat(kept))

    def statistics(
        self,
        n_frames: int,
        span: Float[Tensor, "2 joint"],
        digests: Digests,
        data_sha256: str,
        source: str,
    ) -> KeyStatistics:
        """Of all scenes so far."""
        moments, sample = self._moments, self._sample
        moments.leave()
        if not moments.n_keys:
            raise EditError("There is no key to take statistics of: give scenes of some episodes.")
        _require_enough(moments, n_frames)
        return KeyStatistics(
            self.site,
            moments.mean().cpu(),
            sample.keys(),
            sample.addresses(),
            span,
            moments.n_keys,
            n_frames,
            moments.n_episodes,
            held_out_drift(moments.halves(), sample.by_half()),
            upstream_sha256(digests, self.site),
            data_sha256,
            source,
        )


def _counted(
    scene: Scene,
    site: MLPSite,
    keys: Float[Tensor, "position neuron"],
    max_positions: int,
    generator: torch.Generator,
) -> Int[Tensor, " counted"]:
    """The positions of a scene whose keys are counted, ascending."""
    positions = torch.arange(len(keys))
    if site.in_decoder and scene.action_is_pad is not None:
        positions = positions[~scene.action_is_pad[: len(keys)].cpu()]
    if len(positions) > max_positions:
        drawn = torch.randperm(len(positions), generator=generator)[:max_positions]
        positions = positions[drawn.sort().values]
    return positions.to(keys.device)


def _span(actions: Float[Tensor, "step joint"]) -> Float[Tensor, "2 joint"]:
    return torch.stack([actions.amin(0), actions.amax(0)])


def _require_enough(moments: EpisodeMoments, n_frames: int) -> None:
    """Refuse moments that have no chance of full rank on the active neurons."""
    n_active = int((moments.mean().diagonal() > 0).sum())
    if moments.n_keys < n_active:
        needed = math.ceil(n_active * n_frames / moments.n_keys)
        raise EditError(
            f"{moments.n_keys} keys of {n_frames} scenes are too few for statistics of {n_active} "
            f"active neurons: it takes at least {n_active} keys, about {needed} scenes."
        )
