"""The maps that a film can show: options, and how each is made for one frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from actlens.attention.token_weights import cross_weights, encoder_weights
from actlens.errors import SceneError
from actlens.interventions import SceneRun, run_scene
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.patching import SweepOptions
from actlens.patching.token_shares import depth_hook, restored_by_token
from actlens.report.map_film import MapFrame
from actlens.scene import Scene
from actlens.scenes.counterparts import matched_frames, other_episode
from actlens.scenes.dataset import Dataset
from actlens.scenes.pairs import parse_address
from experiments.scene_choice import Data, Policy

_ALIKE = 1.0
"""Root mean square difference of two actions (dataset units) below which no share is shown."""


@dataclass(frozen=True)
class Common:
    """Options of every film."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    episode: int = 0
    """Of the dataset."""
    rollout: int | None = None
    """Instead of an episode of the dataset, one of the policy in the simulator: the start's number,
    from 0."""
    every: int = 1
    """Every how many-th frame gets a map and a picture."""
    slower: float = 1.0
    """How many times longer than the episode the film lasts."""
    rerun: Path | None = None
    """Also log everything to this .rrd file for the Rerun viewer (pip install rerun-sdk)."""
    output_dir: Path | None = None
    """Where files go; runs/film-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class MapOf:
    """A kind of map, made ready for one policy and episode."""

    title: str
    label: str
    bars_label: str
    frame: Callable[[Scene], MapFrame]
    diverging: bool = False
    facts: tuple[tuple[str, str], ...] = ()
    """Lines for the report."""


class Kind(Protocol):
    """Options that say which map is shown."""

    def map_of(self, model: HookedACT, dataset: Dataset, episode: int) -> MapOf:
        """What makes the maps of one episode."""
        ...


@dataclass(frozen=True)
class Attention(Common):
    """The decoder's cross-attention: which tokens the action chunk's positions look at."""

    block: int = -1
    """Of the decoder; -1 is the last."""
    head: int | None = None
    """One head; the mean over heads if not given."""
    positions: tuple[int, ...] = ()
    """Positions of the action chunk, averaged; those that are carried out if not given."""

    def map_of(self, model: HookedACT, dataset: Dataset, episode: int) -> MapOf:
        """Weights over tokens, which sum to one."""
        config = model.config
        positions = self.positions or tuple(range(config.n_action_steps))

        def frame(scene: Scene) -> MapFrame:
            run = run_scene(model, scene)
            values = cross_weights(
                model, run, block=self.block, head=self.head, positions=positions
            )
            return _frame(model, scene, run, values, _sums(model, values))

        block = self.block % config.n_decoder_layers
        where = f"decoder block {block}, {_heads(self.head, config.n_heads)}"
        title = f"cross-attention, {where}, chunk positions {_spans(positions)}"
        return MapOf(title, "share of the attention, by token", "share, whole groups", frame)


@dataclass(frozen=True)
class EncoderAttention(Common):
    """The encoder's self-attention: which tokens the tokens look at."""

    block: int = -1
    """Of the encoder; -1 is the last."""
    head: int | None = None
    """One head; the mean over heads if not given."""
    asking: tuple[str, ...] = ()
    """The tokens that look (`state`, `top[3,7]`, `lateral`), averaged; all if not given."""

    def map_of(self, model: HookedACT, dataset: Dataset, episode: int) -> MapOf:
        """Weights over tokens, which sum to one."""
        config = model.config
        asking = [index for name in self.asking for index in _indices(model, name)]

        def frame(scene: Scene) -> MapFrame:
            run = run_scene(model, scene)
            values = encoder_weights(model, run, block=self.block, head=self.head, asking=asking)
            return _frame(model, scene, run, values, _sums(model, values))

        where = f"block {self.block % config.n_encoder_layers}, {_heads(self.head, config.n_heads)}"
        title = f"encoder attention, {where}, of {', '.join(self.asking) or 'all tokens'}"
        return MapOf(title, "share of the attention, by token", "share, whole groups", frame)


@dataclass(frozen=True)
class Patching(Common):
    """Activation patching: each token put alone into another scene, and what it brings back."""

    every: int = 3
    """Every how many-th frame gets a map and a picture; one takes about a second."""
    depth: int = 0
    """The encoder block into which tokens are put: 0 the input tokens; the number of blocks is the
    encoder's output, which is the fastest."""
    donor: str | None = None
    """The other scene: EPISODE:FRAME for one and the same, EPISODE for that episode's frame with
    the nearest arm state; if not given, an episode that does something else from a like start."""
    max_error: float = 0.01
    """Allowed error of a patched action chunk, as a share of its norm, audited; 0 is exact."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk are measured."""

    def map_of(self, model: HookedACT, dataset: Dataset, episode: int) -> MapOf:
        """Restored shares, denoising: the frame's tokens into the other scene's run."""
        donor = _Donor.of(self.donor, dataset, episode, model.config.chunk)
        options = SweepOptions(
            max_error=self.max_error, positions=self.positions, by_position=False
        )

        def frame(scene: Scene) -> MapFrame:
            clean, (base, address) = run_scene(model, scene), donor.run(model, scene)
            found = restored_by_token(
                model, base, clean, depth=self.depth, options=options, scene=scene
            )
            values, n = found.tokens, model.config.n_vector_tokens
            bars = dict(zip(model.tokens.names[:n], values[:n].tolist(), strict=True))
            bars |= {f"{name}, all tokens": share for name, share in found.cameras.items()}
            note = f"donor {address}"
            if found.effect < _ALIKE:
                values, bars = np.full_like(values, np.nan), dict.fromkeys(bars, np.nan)
                note += ": the two actions are alike, no share is defined"
            return _frame(model, scene, clean, values, bars, note)

        hook = depth_hook(model, self.depth)
        title = f"patching at {hook}: each token alone into {donor.name}"
        label = "share of the action that one token restores"
        bars_label = "share restored, patched together"
        facts = (("donor", donor.name),)
        return MapOf(title, label, bars_label, frame, diverging=True, facts=facts)


@dataclass(frozen=True)
class _Donor:
    """The other scene of every frame."""

    name: str
    dataset: Dataset
    chunk: int
    episode: int
    frames: tuple[int, ...]
    """For each frame of the film's episode."""

    @classmethod
    def of(cls, text: str | None, dataset: Dataset, episode: int, chunk: int) -> "_Donor":
        length = dataset.episode(episode).length
        if text is not None and ":" in text:
            other, frame = parse_address(text)
            dataset.scenes(episodes=[other], frames=[frame], chunk=chunk)  # exists, or says so
            return cls(f"scene {text}", dataset, chunk, other, (frame,) * length)
        if text is not None and not (text.isdecimal() and text.isascii()):
            raise SceneError(f"--donor takes EPISODE:FRAME or EPISODE, not {text!r}.")
        other = other_episode(dataset, episode) if text is None else int(text)
        frames = tuple(matched_frames(dataset, episode, other).tolist())
        return cls(f"episode {other}, nearest arm state", dataset, chunk, other, frames)

    def run(self, model: HookedACT, scene: Scene) -> tuple[SceneRun, str]:
        """The donor's run for a frame, and its address."""
        donor = self.dataset.scene(self.episode, self.frames[scene.frame], chunk=self.chunk)
        return run_scene(model, donor), donor.address


def _frame(
    model: HookedACT,
    scene: Scene,
    run: SceneRun,
    values: np.ndarray,
    bars: dict[str, float],
    note: str = "",
) -> MapFrame:
    predicted = run["hook_actions"][0, 0].float().numpy(force=True)
    return MapFrame(scene.frame, values, bars, predicted, note)


def _sums(model: HookedACT, values: np.ndarray) -> dict[str, float]:
    """The tokens that are no pixels by name, and each camera's sum."""
    n = model.config.n_vector_tokens
    sums = dict(zip(model.tokens.names[:n], values[:n].tolist(), strict=True))
    for camera in model.tokens.cameras:
        part = values[model.tokens.camera(camera)]
        sums[f"{camera}, {len(part)} tokens"] = float(part.sum())
    return sums


def _indices(model: HookedACT, address: str) -> Sequence[int]:
    index = model.tokens.index(address)
    if isinstance(index, int):
        return [index]
    return range(*index.indices(len(model.tokens))) if isinstance(index, slice) else index


def _heads(head: int | None, n: int) -> str:
    return f"mean over {n} heads" if head is None else f"head {head}"


def _spans(positions: Sequence[int]) -> str:
    """`0-9` for a run of numbers, else the numbers."""
    first, last = positions[0], positions[-1]
    if len(positions) > 2 and tuple(positions) == tuple(range(first, last + 1)):
        return f"{first}-{last}"
    return ", ".join(map(str, positions))
