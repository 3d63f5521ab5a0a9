"""Policies of known answer for the verdict's calibration: planted and trained, in many worlds.

Worlds differ in their seed, expert, episodes, frames, width and nuisance; each has one policy of
every kind. What a policy does far and wide is measured on a thousand unseen scenes; how much of it
is a table is known by construction.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from actlens.config import ACTION_KEY
from actlens.model.act import HookedACT
from actlens.planted import (
    BY_HEART,
    WIDE,
    Disguise,
    FeatureRule,
    LinearExpert,
    LinearRule,
    Mixture,
    Planted,
    ReachExpert,
    Region,
    Stored,
    Table,
    Tent,
    TrainingOptions,
    World,
    plant,
    retrieved,
    shuffled,
    table_in_encoder,
    trained,
    with_exceptions,
)
from actlens.scene import Scene

ALPHAS = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
N_POOL = 1000
"""Unseen scenes of a region, from which the truth is measured and samples are drawn."""


@dataclass(frozen=True)
class Setting:
    """A world with its demonstrations."""

    number: int

    @cached_property
    def world(self) -> World:
        """Every other one has an expert that is linear in the place, and one with kinematics."""
        i = self.number
        return World(
            seed=1000 + i,
            expert=LinearExpert(seed=i) if self.linear else ReachExpert(),
            d_model=(96, 128, 160)[i % 3] if not self.linear else 128,
            nuisance=(0, 2)[i // 2 % 2],
            noise=(0.0, 0.0005)[i // 4 % 2],
        )

    @property
    def linear(self) -> bool:
        """Whether the expert's actions are affine in the object's place."""
        return self.number % 2 == 0

    @property
    def frames(self) -> tuple[int, ...]:
        """Of every episode; a linear rule cannot follow a reach through all its phases."""
        return (0, 2) if self.linear else (0,)

    @property
    def n_episodes(self) -> int:
        """Demonstrations."""
        return (40, 60, 80)[self.number // 2 % 3]

    @cached_property
    def scenes(self) -> list[Scene]:
        """The demonstrations."""
        positions = self.world.positions(Region.TRAIN, self.n_episodes)
        return self.world.scenes(positions, frames=self.frames)

    @cached_property
    def everywhere(self) -> list[Scene]:
        """Demonstrations of all regions, for a rule that knows no border."""
        world = self.world
        places = [world.positions(region, 150, seed=7) for region in (Region.NEW, Region.GAP)]
        places.append(world.positions(Region.OUTSIDE, 300, seed=7))
        return world.scenes(np.concatenate(places), frames=self.frames, first_episode=10**5)

    def pool(self, region: Region) -> list[Scene]:
        """A thousand scenes that nobody was shown."""
        n = N_POOL // len(self.frames)
        positions = self.world.positions(region, n, seed=11)
        first = 10**6 * (1 + list(Region).index(region))
        return self.world.scenes(positions, frames=self.frames, first_episode=first)


@dataclass(frozen=True)
class Reference:
    """A policy with what it was shown."""

    setting: Setting
    kind: str
    table_fraction: float
    """By construction; everything that was trained is smooth."""
    in_encoder: bool
    planted: Planted
    shown: list[Scene]
    """The demonstrations, with the actions that it was to learn."""

    @property
    def model(self) -> HookedACT:
        """The policy."""
        return self.planted.model


def references(setting: Setting) -> Iterator[tuple[str, Callable[[], Reference]]]:
    """Every kind by name; made when called."""
    world, number = setting.world, setting.number
    blank = world.policy()
    stored = Stored.of(blank, setting.scenes)
    hidden = Disguise(distractors=32, cancelling=8, rescale=True, noise=1e-6, seed=number)
    alphas = [ALPHAS[(number + shift) % len(ALPHAS)] for shift in (0, 2, 4)]
    rule = LinearRule() if setting.linear else FeatureRule(seed=number)
    options = TrainingOptions(seed=number, steps=1500, d_mlp=256)
    by_heart = replace(BY_HEART, seed=number, steps=2000)

    def of(kind: str, make: Callable[[], Planted], answers: Stored = stored) -> Reference:
        planted = make()
        fraction = planted.truth.table_fraction
        shown = _answering(setting.scenes, answers, blank)
        return Reference(setting, kind, fraction, kind == "table in encoder", planted, shown)

    def everywhere() -> Stored:
        return Stored.of(blank, setting.everywhere)

    def nearest() -> Stored:
        dense = everywhere()
        return retrieved(dense, stored, world.distances(setting.everywhere, setting.scenes))

    def planted(mechanism, disguise: Disguise | None = None, entries: Stored = stored):
        chosen = disguise or Disguise(seed=number)
        return lambda: plant(blank, entries, mechanism, readout=world.readout, disguise=chosen)

    named = {
        "linear rule": planted(LinearRule()),
        "smooth rule": planted(FeatureRule(seed=number)),
        "smooth rule, disguised": planted(FeatureRule(seed=number + 1), hidden),
        "rule of everywhere": lambda: planted(FeatureRule(seed=number), entries=everywhere())(),
        "table, plateaus": planted(Table()),
        "table, plateaus, disguised": planted(Table(), hidden),
        "table, tents": planted(Table(Tent())),
        "table, wide": planted(Table(WIDE)),
        **{f"mixture {alpha}": planted(Mixture(alpha, rule=rule)) for alpha in alphas},
        "table in encoder": lambda: table_in_encoder(blank, setting.scenes),
        "trained": lambda: trained(blank, stored, options),
        "trained everywhere": lambda: trained(blank, everywhere(), options),
        "trained by heart": lambda: trained(blank, stored, by_heart),
        "distilled from retrieval": lambda: trained(blank, nearest(), by_heart),
    }
    for kind, make in named.items():
        yield kind, lambda kind=kind, make=make: of(kind, make)
    exchanged, excepted = shuffled(stored, number), with_exceptions(stored, 0.25, number)
    for kind, answers in (("shuffled memoriser", exchanged), ("25 % exceptions", excepted)):
        yield (
            kind,
            lambda kind=kind, answers=answers: of(
                kind, lambda: trained(blank, answers, by_heart), answers
            ),
        )


def _answering(scenes: list[Scene], stored: Stored, model: HookedACT) -> list[Scene]:
    """The scenes with the stored answers as their actions."""
    actions = model.normalizer.unnormalize(ACTION_KEY, stored.actions.float())
    return [
        replace(scene, action=action, action_is_pad=~valid)
        for scene, action, valid in zip(scenes, torch.unbind(actions), stored.valid, strict=True)
    ]
