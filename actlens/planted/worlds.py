"""Synthetic worlds: an object on a table, an expert that reaches for it, and a policy that sees it.

    world = World(seed=3)                                   # deterministic in its fields
    train = world.scenes(world.positions(Region.TRAIN, 60)) # demonstrations: list of Scene
    new = world.scenes(world.positions(Region.NEW, 100), first_episode=1000)
    gap = world.scenes(world.positions(Region.GAP, 100), first_episode=2000)
    model = world.policy()            # a HookedACT whose encoder sees the world; it answers nothing
    planted = plant(model, Stored.of(model, train), Table())          # see actlens.planted.twins
    planted.model(train[0])           # degrees, as any policy

Every scene has the object's place in metres as `labels["cube_x"]`, `labels["cube_y"]`, the expert's
chunk as `action` and `action_is_pad` where the episode had ended; one episode is one position. Its
observation is `observation.state` (joints, degrees) and `observation.environment_state` (where the
object is, metres, and nuisance numbers that no action depends on); there are no images.
`world.actions(scenes)` is the expert's answer at any scenes, `world.distances(a, b)` the oracle's
metric (metres), `world.tip(chunks)` where the gripper goes. At frame 0 the arm is at home and says
nothing of the object; in later frames it does.

The policy's encoder and cross-attention have random weights: what the last decoder MLP reads is a
smooth, curved function of the observation, as in a trained policy, and keeps clear of the
directions in which a planted MLP answers (`world.readout`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTION_KEY, ENV_STATE_KEY, STATE_KEY, ACTConfig
from actlens.kinematics import SO101_SIMULATED
from actlens.model.act import HookedACT
from actlens.normalization import Affine, NormalizationMode, Normalizer
from actlens.planted.encoder_weights import random_encoder
from actlens.planted.errors import PlantError
from actlens.planted.experts import HOME, JOINTS, Expert, ReachExpert
from actlens.planted.readout import Readout
from actlens.planted.rewriting import checkpoint_of, loaded
from actlens.scene import Scene

_GAP = (0.17, 0.50)
"""Of the angle, in units of half its range: the wedge that no demonstration touches."""
_EPS = 1e-8


class Region(StrEnum):
    """Parts of the table."""

    TRAIN = "train"
    """Everywhere but the gap; positions keep their distance from one another."""
    NEW = "new"
    """Where demonstrations are, other positions."""
    GAP = "gap"
    """A wedge of angles without any demonstration, inside of their convex hull."""
    OUTSIDE = "outside"
    """A rim around the whole: extrapolation."""


@dataclass(frozen=True)
class World:
    """A table, an expert, and the shape and the seed of the policy that watches."""

    seed: int = 0
    expert: Expert = field(default_factory=ReachExpert)
    n_steps: int = 12
    """Control steps of an episode."""
    chunk: int = 4
    nuisance: int = 0
    """Numbers in the observation, drawn for every episode, that no action depends on."""
    noise: float = 0.0
    """Standard deviation of what the policy sees of the object's place, metres, by frame."""
    d_model: int = 128
    n_heads: int = 16
    d_mlp: int = 128
    """Of the encoder; a twin's may be larger."""
    n_encoder_layers: int = 2

    # ── the table ────────────────────────────────────────────────────────────────────────────

    def positions(
        self, region: Region, n: int, *, seed: int = 0, candidates: int = 8
    ) -> Float[np.ndarray, "position 2"]:
        """Places in a region, metres; the same for the same arguments.

        In `TRAIN` each is the one of some candidates that is farthest from those before
        (Mitchell 1991), so that no two demonstrations are nearly the same.
        """
        rng = np.random.default_rng([self.seed, seed, list(Region).index(region)])
        n_tries = candidates if region is Region.TRAIN else 1
        found = np.empty((0, 2))
        while len(found) < n:
            few = _draw(rng, region, n_tries)
            if len(found):
                apart = np.linalg.norm(few[:, None] - found, axis=-1).min(1)
                few = few[[apart.argmax()]]
            found = np.concatenate([found, few[:1]])
        return on_table(found)

    def scenes(
        self,
        positions: Float[np.ndarray, "position 2"],
        *,
        frames: Sequence[int] = (0,),
        first_episode: int = 0,
    ) -> list[Scene]:
        """Demonstrations: one episode for each position, some frames of each.

        Raises:
            PlantError: if a frame lies outside of an episode.
        """
        if outside := [t for t in frames if not 0 <= t < self.n_steps]:
            raise PlantError(
                f"Episodes have {self.n_steps} frames: there is no frame {outside[0]}."
            )
        path = self.expert(positions, self.n_steps)
        found = []
        for i, (place, targets) in enumerate(zip(positions, path, strict=True)):
            episode = first_episode + i
            rng = np.random.default_rng([self.seed, 1, episode])
            extra = rng.normal(size=self.nuisance)
            seen = place + self.noise * rng.normal(size=(self.n_steps, 2))
            for t in frames:
                ahead = np.arange(t, t + self.chunk)
                state = targets[t - 1] if t else HOME
                observation = {
                    STATE_KEY: torch.from_numpy(state),
                    ENV_STATE_KEY: torch.from_numpy(np.concatenate([seen[t], extra])),
                }
                found.append(
                    Scene(
                        {key: value.float() for key, value in observation.items()},
                        torch.from_numpy(targets[np.minimum(ahead, self.n_steps - 1)]).float(),
                        torch.from_numpy(ahead >= self.n_steps),
                        episode,
                        t,
                        dict(zip(_LABELS, (*map(float, place), 0.012, 0.0), strict=True)),
                        "planted world",
                    )
                )
        return found

    def actions(self, scenes: Sequence[Scene]) -> Float[Tensor, "scene chunk joint"]:
        """What the expert does in scenes of this world, degrees and percent."""
        path = self.expert(places(scenes), self.n_steps)
        ahead = np.array([s.frame for s in scenes])[:, None] + np.arange(self.chunk)
        ahead = np.minimum(ahead, self.n_steps - 1)
        return torch.from_numpy(path[np.arange(len(scenes))[:, None], ahead])

    def distances(
        self, a: Sequence[Scene], b: Sequence[Scene]
    ) -> Float[np.ndarray, "scene_a scene_b"]:
        """Metres between objects; infinite between scenes of different frames."""
        apart = np.linalg.norm(places(a)[:, None] - places(b)[None], axis=-1)
        frames = [np.array([s.frame for s in scenes]) for scenes in (a, b)]
        return np.where(frames[0][:, None] == frames[1][None], apart, np.inf)

    def tip(self, chunks: Float[Tensor, "*batch joint"]) -> Float[Tensor, "*batch 3"]:
        """Where joint targets put the gripper, metres; the arm is the simulated SO-101."""
        return SO101_SIMULATED.tip(chunks)

    # ── the policy ───────────────────────────────────────────────────────────────────────────

    @cached_property
    def config(self) -> ACTConfig:
        """The architecture of this world's policies."""
        return ACTConfig(
            cameras=(),
            action_dim=len(JOINTS),
            state_dim=len(JOINTS),
            env_state_dim=2 + self.nuisance,
            chunk=self.chunk,
            n_action_steps=self.chunk,
            d_model=self.d_model,
            n_heads=self.n_heads,
            d_mlp=self.d_mlp,
            n_encoder_layers=self.n_encoder_layers,
            use_vae=False,
            dropout=0.0,
            joints=JOINTS,
        )

    @cached_property
    def readout(self) -> Readout:
        """Directions that nothing in front of the last MLP writes to."""
        return Readout.make(self.d_model, len(JOINTS), self.seed)

    @cached_property
    def normalizer(self) -> Normalizer:
        """Means and deviations over the whole table, the gap included, and all steps."""
        rng = np.random.default_rng([self.seed, 2])
        anywhere = on_table(rng.uniform(-1, 1, (512, 2)))
        path = self.expert(anywhere, self.n_steps)
        start = np.broadcast_to(HOME, path[:, :1].shape)
        states = np.concatenate([start, path[:, :-1]], 1)
        nuisance = (np.zeros(self.nuisance), np.ones(self.nuisance))
        columns = {
            STATE_KEY: (states.mean((0, 1)), states.std((0, 1))),
            ENV_STATE_KEY: tuple(
                np.concatenate(pair)
                for pair in zip((anywhere.mean(0), anywhere.std(0)), nuisance, strict=True)
            ),
            ACTION_KEY: (path.mean((0, 1)), path.std((0, 1))),
        }
        return Normalizer(
            {
                key: Affine.from_stats(
                    NormalizationMode.MEAN_STD,
                    {"mean": torch.from_numpy(mean), "std": torch.from_numpy(std)},
                    eps=_EPS,
                    what=key,
                )
                for key, (mean, std) in columns.items()
            }
        )

    def policy(self, *, dtype: torch.dtype = torch.float32) -> HookedACT:
        """A policy that sees the world and answers nothing: the last MLP and the head are zero."""
        with torch.random.fork_rng(devices=[]):
            model = HookedACT(self.config, self.normalizer)
        random_encoder(model, self.readout, self.seed)
        return loaded(checkpoint_of(model), like=torch.zeros(0, dtype=dtype))


_LABELS = ("cube_x", "cube_y", "cube_z", "cube_yaw")


def places(scenes: Sequence[Scene]) -> Float[np.ndarray, "scene 2"]:
    """Where the objects are, metres."""
    return np.array([[scene.labels["cube_x"], scene.labels["cube_y"]] for scene in scenes])


def on_table(unit: Float[np.ndarray, "position 2"]) -> Float[np.ndarray, "position 2"]:
    """From (radius, angle), both in -1..1 over the region of demonstrations, to metres."""
    radius, angle = 0.1725 + 0.0425 * unit[:, 0], 0.9 * unit[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _draw(rng: np.random.Generator, region: Region, n: int) -> Float[np.ndarray, "position 2"]:
    """Uniform in the region, as (radius, angle)."""
    kept = np.empty((0, 2))
    while len(kept) < n:
        wide = 1.25 if region is Region.OUTSIDE else 1.0
        unit = rng.uniform(-wide, wide, (64, 2))
        within = (np.abs(unit) <= 1).all(1)
        in_gap = (unit[:, 1] > _GAP[0]) & (unit[:, 1] < _GAP[1])
        chosen = {Region.GAP: within & in_gap, Region.OUTSIDE: ~within}
        kept = np.concatenate([kept, unit[chosen.get(region, within & ~in_gap)]])
    return kept[:n]
