"""What is done to a policy while it acts, and the donors that are made for it on the way."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from actlens.config import IMAGE_PREFIX
from actlens.errors import InterventionError
from actlens.interventions import Intervention, SceneRun, run_scene
from actlens.interventions.sources import Donors
from actlens.model.act import HookedACT
from actlens.scene import Observation
from actlens.sim.environment import PickCube
from actlens.sim.regions import Region, sample
from actlens.sim.rollout import as_observation


@dataclass(frozen=True)
class Start:
    """Where an episode begins; the same start gives the same episode."""

    cube_xy: tuple[float, float]
    """The cube's position in metres from the base."""
    seed: int
    """Of the arm's pose and the cube's heading."""
    elsewhere_xy: tuple[float, float] | None = None
    """Where the cube stands in the start's counterfactual twin, which shares everything else."""


def draw_starts(
    n: int, *, region: Region = Region.TRAIN, min_distance: float = 0.05, seed: int = 0
) -> tuple[Start, ...]:
    """Independent starts, each with a second cube position at least `min_distance` metres away.

    The first starts are the same however many are drawn.
    """
    starts = []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        here, there = sample(region, rng), sample(region, rng)
        while np.linalg.norm(there - here) < min_distance:
            there = sample(region, rng)
        (x, y), (u, v) = here.tolist(), there.tolist()
        starts.append(Start((x, y), int(rng.integers(2**31)), (u, v)))
    return tuple(starts)


@dataclass(frozen=True, eq=False)
class History:
    """A rollout up to now: what donors may be made from."""

    start: Start
    first: Observation
    """The observation of control step 0."""
    actions: Sequence[np.ndarray]
    """The joint targets carried out so far, in dataset units; as many as control steps."""


DonorsOf = Callable[[HookedACT, History], Donors]
"""Makes the donors of an intervention, anew for every inference at which it acts."""
Perturb = Callable[[Observation, int], Observation]
"""What the policy is shown instead: (observation, control step) -> observation. It is asked at
every control step, with a copy of its own; returning that as it came means that it does not act."""
Within = Callable[[HookedACT, Start], AbstractContextManager[object]]
"""What a whole rollout happens within, such as edited weights: entered before it and left after it,
whatever happens."""


@dataclass(frozen=True)
class Condition:
    """One thing done to the policy in a rollout: inside it, to what it sees, or to its weights.

    Without any of these it is a plain rollout: the floor of a comparison.
    """

    name: str
    intervention: Intervention | None = None
    donors: DonorsOf = lambda model, history: {}
    perturb: Perturb | None = None
    """`actlens.interventions.perturbations.PerturbedView`, or any such function. One function
    serves all rollouts of a comparison: control step 0 begins another."""
    within: Within | None = None
    """`lambda model, start: apply_edits(model, edit)`, or any such function."""

    @property
    def is_undisturbed(self) -> bool:
        """Whether nothing is done at all."""
        return not self.acts_at_inferences and self.within is None

    @property
    def acts_at_inferences(self) -> bool:
        """Whether something is done at single inferences, not throughout."""
        return self.intervention is not None or self.perturb is not None


UNDISTURBED = Condition("undisturbed")
REPEATED = Condition("undisturbed, once more")
"""The floor of every comparison: how far two rollouts of one start are apart by themselves."""


def fixed(donors: Donors) -> DonorsOf:
    """The same runs for every rollout and inference."""
    return lambda model, history: donors


def first_look(role: str = "first") -> DonorsOf:
    """The run of the rollout's own first observation: what was seen then takes now's place."""
    return lambda model, history: {role: run_scene(model, history.first)}


def cube_elsewhere(simulator: PickCube, role: str = "twin") -> DonorsOf:
    """The counterfactual twin of the present moment: all as it happened, the cube elsewhere.

    The arm's history is replayed in a second simulator with the cube at `Start.elsewhere_xy`.

    Args:
        simulator: of the size of the rollout's own, used for nothing else; `render=False` is
            faster.
        role: what sources call the donor: `FromScene("twin")`.
    """

    def donors(model: HookedACT, history: History) -> Donors:
        if history.start.elsewhere_xy is None:
            raise InterventionError(
                f"{history.start} does not say where the twin's cube stands: give elsewhere_xy."
            )
        return {role: _run_replayed(model, simulator, history, history.start.elsewhere_xy)}

    return donors


def cube_where_it_is(simulator: PickCube, role: str = "twin") -> DonorsOf:
    """The control of `cube_elsewhere`: replayed all the same, but nothing is changed."""
    return lambda model, history: {
        role: _run_replayed(model, simulator, history, history.start.cube_xy)
    }


def at_start(donors: DonorsOf) -> DonorsOf:
    """The donors that the rollout had at its start, kept for all of it."""
    return lambda model, history: donors(model, replace(history, actions=()))


def _run_replayed(
    model: HookedACT, simulator: PickCube, history: History, cube_xy: tuple[float, float]
) -> SceneRun:
    """What the policy makes of the moment at which the arm has done the same to another cube."""
    seen, _ = simulator.reset(seed=history.start.seed, options={"cube_xy": np.asarray(cube_xy)})
    for action in history.actions:
        seen, *_ = simulator.step(action)
    missing = {camera.key for camera in model.config.cameras} - seen.keys()
    pictures = {key: simulator.picture(key.removeprefix(IMAGE_PREFIX)) for key in missing}
    return run_scene(model, as_observation(seen | pictures))
