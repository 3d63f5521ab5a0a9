"""Steering by value vectors: neurons are held at a constant, or their values are written anew.

Haon et al. (2025) override clusters of feed-forward neurons of a vision-language-action model by a
constant in rollouts, and compare with as many random neurons. Here a dose is counted in what each
neuron does by itself: dose 1 is a high value of its own coefficient over the data.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, Self

import numpy as np
import torch
from jaxtyping import Float

from actlens.errors import InterventionError
from actlens.interventions import Constant, Edit, Intervention, Steering
from actlens.interventions.mlp_runs import keys_in
from actlens.kinematics import SO101_SIMULATED
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene
from actlens.sim.controlled import Episode
from actlens.sites import Site

_STILL = 1e-6
"""Metres a degree below which a motion of the joints does not move the gripper."""
_PER_SCENE = 16
_BATCH = 8


@dataclass(frozen=True)
class NeuronScales:
    """What the neurons of an MLP do by themselves: what a dose is, and who resembles whom."""

    site: MLPSite
    high: Float[np.ndarray, " neuron"]
    """A high coefficient of each: one dose."""
    mean: Float[np.ndarray, " neuron"]
    """Mean coefficient."""
    active: Float[np.ndarray, " neuron"]
    """Share of entries at which it fires."""
    length: Float[np.ndarray, " neuron"]
    """|v_n|, of its value: its column of the output weights."""

    @classmethod
    def of(
        cls,
        model: HookedACT,
        scenes: Iterable[Scene],
        block: str,
        *,
        quantile: float = 0.99,
        seed: int = 0,
    ) -> Self:
        """Taken over scenes, at 16 positions that are drawn in each (all, if there are fewer).

        Args:
            block: `decoder.0`, `encoder.2`, ….
            quantile: of the coefficients, for `high`; 1 is the largest.
            seed: of the positions.

        Raises:
            HookNameError: if the policy has no such block.
            SceneError: if there is no scene, or one does not fit the policy.
            InterventionError: if the quantile is none.
        """
        if not 0 < quantile <= 1:
            raise InterventionError(f"A quantile lies above 0 and at most at 1, not at {quantile}.")
        site = MLPSite.of(model, block)
        generator = torch.Generator().manual_seed(seed)
        kept, stream = [], iter(scenes)
        while batch := list(islice(stream, _BATCH)):
            for keys in keys_in(model, site, batch).float().cpu():
                drawn = torch.randperm(len(keys), generator=generator)[:_PER_SCENE]
                kept.append(keys[drawn].numpy())
        if not kept:
            raise InterventionError("There is no scene to take the neurons' scales from.")
        coefficients = np.concatenate(kept)
        return cls(
            site,
            np.quantile(coefficients, quantile, axis=0),
            coefficients.mean(0, dtype=np.float64),
            (coefficients > 0).mean(0),
            site.layer(model).weight.detach().norm(dim=0).cpu().double().numpy(),
        )

    def matched(
        self, neurons: Sequence[int], *, seed: int = 0, nearest: int = 20
    ) -> tuple[int, ...]:
        """As many other neurons, each drawn from those most like one of the given.

        Alike in the length of the value, in the high and the mean coefficient and in the share of
        entries at which they fire, each in standard deviations over the neurons that can be dosed.

        Args:
            neurons: indices; they are not drawn.
            nearest: from how many a neuron's counterpart is drawn.

        Raises:
            InterventionError: if there are too few others.
        """
        self.require(neurons)
        others = np.setdiff1d(np.flatnonzero(self.high > 0), neurons)
        if len(others) < len(neurons):
            raise InterventionError(
                f"{len(neurons)} neurons are to be matched, and {self.site.block} has only "
                f"{len(others)} others that fire often enough to be dosed."
            )
        traits = np.stack([self.length, self.high, self.mean, self.active])
        spread = traits[:, others].std(1, keepdims=True)
        traits = traits / np.where(spread > 0, spread, 1)
        rng, drawn = np.random.default_rng(seed), []
        # In random order, so that no neuron always comes last, when the best are taken.
        for place in rng.permutation(len(neurons)):
            apart = np.linalg.norm(traits[:, others] - traits[:, [neurons[place]]], axis=0)
            chosen = rng.choice(np.argsort(apart, kind="stable")[:nearest])
            drawn.append(int(others[chosen]))
            others = np.delete(others, chosen)
        return tuple(drawn)

    def write(self, model: HookedACT, neurons: Sequence[int]) -> Float[np.ndarray, " d_model"]:
        """What some neurons write to the stream together if each has its high coefficient."""
        values = self.site.layer(model).weight.detach()[:, list(neurons)].double().cpu().numpy()
        return values @ self.high[list(neurons)]

    def require(self, neurons: Sequence[int]) -> None:
        """Refuse neurons that do not exist, are named twice, or have no scale.

        Raises:
            InterventionError: naming them.
        """
        n = len(self.high)
        if not neurons or len(set(neurons)) < len(neurons) or not all(0 <= i < n for i in neurons):
            raise InterventionError(
                f"Give different neurons out of 0..{n - 1} of {self.site.block}, not "
                f"{tuple(neurons)}."
            )
        if dead := [i for i in neurons if self.high[i] <= 0]:
            raise InterventionError(
                f"Neurons {', '.join(map(str, dead[:5]))} of {self.site.block} hardly ever fire "
                "over these scenes: there is no dose in their own measure. Take quantile=1, other "
                "scenes, or other neurons."
            )


@dataclass(frozen=True)
class Claim:
    """Which way the values of some neurons are said to move the arm."""

    name: str
    neurons: tuple[int, ...]
    direction: tuple[float, ...]
    """By joint, in dataset units; its length does not matter."""

    @property
    def unit(self) -> Float[np.ndarray, " joint"]:
        """The direction at length one.

        Raises:
            InterventionError: if it is none of six joints.
        """
        direction, n = np.asarray(self.direction, dtype=np.float64), len(SO101_SIMULATED.joints)
        length = np.linalg.norm(direction)
        if direction.shape != (n,) or not np.isfinite(length) or not length:
            raise InterventionError(
                f"{self.name!r} promises {self.direction}: give one number for each of the {n} "
                "joints, not all of them zero."
            )
        return direction / length


class Dosing(Protocol):
    """How neurons are made to say more, or less, than they do."""

    def intervention(
        self, model: HookedACT, scales: NeuronScales, neurons: Sequence[int], dose: float
    ) -> Intervention | None:
        """What to do at every inference; None if that is nothing at this dose."""
        ...


@dataclass(frozen=True)
class Clamp:
    """Hold every coefficient at dose times its high value, at all positions (Haon et al. 2025).

    At dose 0 that ablates; a negative dose holds it where no ReLU ever puts it.
    """

    def intervention(
        self, model: HookedACT, scales: NeuronScales, neurons: Sequence[int], dose: float
    ) -> Intervention:
        """One edit for every neuron."""
        scales.require(neurons)
        keys = scales.site.keys
        return Intervention(
            tuple(
                Edit(Site(keys, {"neuron": i}), Constant(float(dose * scales.high[i])))
                for i in neurons
            )
        )


@dataclass(frozen=True)
class AddValues:
    """Add dose times the sum of the neurons' values, each times its high, to the MLP's output.

    What the neurons say by themselves stays.
    """

    def intervention(
        self, model: HookedACT, scales: NeuronScales, neurons: Sequence[int], dose: float
    ) -> Intervention | None:
        """One vector for all positions; nothing at dose 0."""
        scales.require(neurons)
        if not dose:
            return None
        vector = tuple(scales.write(model, neurons).tolist())
        return Intervention.at(Site(scales.site.output), Steering(vector, dose))


def displacement(
    episode: Episode, undisturbed: Episode, claim: Claim
) -> Mapping[str, Float[np.ndarray, " step"]]:
    """How far a rollout is from the undisturbed one at every control step, and how much of it lies
    the promised way: `along_deg` and `apart_deg` of the joints, `along_mm` and `apart_mm` of the
    tip."""
    here, there = episode.result, undisturbed.result
    joints = (here.states - there.states).astype(np.float64)
    tip = 1000 * (here.tip - there.tip)
    states = torch.from_numpy(there.states.astype(np.float64)).requires_grad_()
    axes = SO101_SIMULATED.tip(states).sum(0)
    slopes = [torch.autograd.grad(axis, states, retain_graph=True)[0] for axis in axes]
    way = torch.stack(slopes, 1).numpy() @ claim.unit
    speed = np.linalg.norm(way, axis=1, keepdims=True)
    way = np.divide(way, speed, out=np.full_like(way, np.nan), where=speed > _STILL)
    return {
        "along_deg": joints @ claim.unit,
        "apart_deg": np.linalg.norm(joints, axis=1),
        "along_mm": (tip * way).sum(1),
        "apart_mm": np.linalg.norm(tip, axis=1),
    }
