"""Requests for target scenes, prepared from runs that were made already."""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import Digests, digests_of
from actlens.rome.jitter import NO_JITTER
from actlens.rome.prepared import Prepared
from actlens.rome.probes import Role
from actlens.rome.request import JointLimits, Offset, Request, Resolved, resolve
from actlens.rome.situations import Places
from actlens.rome.targets import Target, TargetSet
from actlens.text import did_you_mean, quoted


class Kind(StrEnum):
    """What is asked for in a target scene."""

    ONE_JOINT = "one joint"
    """The same joint everywhere, moved by the same amount, in a direction that its limits allow."""
    EITHER_WAY = "one joint, either way"
    """As before, in a direction that is drawn."""
    ANY_JOINT = "any joint"
    """Another joint in every scene."""
    SEVERAL_JOINTS = "two joints"
    """Two joints at once, in any directions."""
    OTHER_SCENE = "another scene's actions"
    """What the policy does in a scene of the same phase that is far away."""


@dataclass(frozen=True)
class Case:
    """One target with one request."""

    target: Target
    prepared: Prepared
    asked: Float[Tensor, "position joint"]
    """The change, normalised."""

    @property
    def positions(self) -> list[int]:
        """Of the chunk, for which something is asked."""
        return list(self.prepared.resolved[0].positions)

    @property
    def joints(self) -> list[int]:
        """Numbers of the joints that are to move: by a twentieth at least of what the first is."""
        size = self.asked.abs().mean(0)
        return (size > 0.05 * size.max()).nonzero()[:, 0].tolist()


def cases_of(
    model: HookedACT,
    found: TargetSet,
    kind: Kind,
    joint: str,
    amount: float,
    *,
    limits: JointLimits | None,
    seed: int = 0,
) -> tuple[Case, ...]:
    """The requests of a kind for all targets in which the limits allow one.

    Args:
        joint: that `Kind.ONE_JOINT` moves.
        amount: by which it moves, in dataset units; other joints move by as much of their spread in
            the data.
        limits: what targets are checked against; nothing, if None.

    Raises:
        EditError: if the joint does not exist, or the limits allow no request at all.
    """
    joints = model.config.joints
    if joint not in joints:
        raise EditError(
            f"The policy has no joint {quoted(joint)}; it has {', '.join(joints)}."
            f"{did_you_mean(joint, joints)}"
        )
    rng = np.random.default_rng(seed)
    digests, cases, refusal = digests_of(model), [], ""
    asked = _Asked(model, found, kind, joint, amount)
    for target in found.targets:
        for wanted in asked.of(target, rng):
            try:
                cases.append(_case(model, found, target, wanted, limits, digests))
                break
            except EditError as error:
                refusal = str(error)
    if not cases:
        raise EditError(f"No target scene admits this request. {refusal}")
    return tuple(cases)


def opposite(case: Case, found: TargetSet, number: int, places: Places) -> Case:
    """What contradicts a case: the opposite change in another scene, which is looked at nowhere.

    Args:
        number: of the scene, in the runs.
    """
    scene, prepared = found.scenes[number], case.prepared
    target = Target(scene, places.of(scene), ((number,), *[()] * (len(found.groups) - 1)))
    runs = found.runs.of_scenes([number])
    at = case.positions
    one = Resolved(tuple(at), runs.actions[0, at] - case.asked)
    units = prepared.model.normalizer.unnormalize(ACTION_KEY, runs.actions[0])
    return Case(target, _prepared(prepared, Request(scene, units), one, runs), -case.asked)


@dataclass(frozen=True)
class _Asked:
    """What to ask for, in the order in which it is tried."""

    model: HookedACT
    found: TargetSet
    kind: Kind
    joint: str
    amount: float

    def of(self, target: Target, rng: np.random.Generator) -> list[Offset | Tensor]:
        """Some targets of a request, of which the limits may refuse the first ones."""
        joints = self.model.config.joints
        if self.kind in (Kind.ONE_JOINT, Kind.EITHER_WAY):
            signs = [1, -1] if self.kind is Kind.ONE_JOINT else rng.permutation([1, -1]).tolist()
            return [Offset({self.joint: sign * self.amount}) for sign in signs]
        if self.kind is Kind.OTHER_SCENE:
            far = [i for g, group in enumerate(self.found.groups) if group.role is Role.FAR
                   for i in target.probes[g]]  # fmt: skip
            actions = self.found.runs.actions[rng.permutation(far)[:4]]
            return list(self.model.normalizer.unnormalize(ACTION_KEY, actions))
        amounts = self._amounts()
        moving = [name for name in joints if amounts[name] > 0]
        n = min(len(moving), 1 if self.kind is Kind.ANY_JOINT else 2)
        tries: list[Offset | Tensor] = []
        for _ in range(8):
            names = rng.choice(moving, n, replace=False)
            signs = rng.choice([-1.0, 1.0], n)
            tries.append(
                Offset({str(k): float(x * amounts[k]) for k, x in zip(names, signs, strict=True)})
            )
        return tries

    def _amounts(self) -> dict[str, float]:
        """By joint, as much of its spread as the amount is of its own joint's."""
        joints = self.model.config.joints
        spread = spread_of(self.model, ACTION_KEY, torch.zeros(len(joints))).tolist()
        share = abs(self.amount) / (spread[joints.index(self.joint)] or 1.0)
        return {name: share * x for name, x in zip(joints, spread, strict=True)}


def _case(
    model: HookedACT,
    found: TargetSet,
    target: Target,
    wanted: Offset | Tensor,
    limits: JointLimits | None,
    digests: Digests,
) -> Case:
    """As `prepare` makes it without jitter and neighbours, from runs that were made already."""
    request = Request(target.scene, wanted)
    runs = found.runs.of_scenes(target.probes[0])
    one = resolve(model, request, runs.actions[0], limits)
    weight = runs.site.layer(model).weight.detach().clone()
    like = Prepared(model, (), (), runs, (), weight, digests, NO_JITTER)
    asked = one.target - runs.actions[0, list(one.positions)]
    return Case(target, _prepared(like, request, one, runs), asked)


def _prepared(like: Prepared, request: Request, one: Resolved, runs: MLPRuns) -> Prepared:
    """A request of its own in the same policy."""
    at = list(one.positions) if runs.rest.positionwise else slice(None)
    keys = (runs.keys[0, at].double().cpu(),)
    return replace(like, requests=(request,), resolved=(one,), runs=runs, keys=keys)
