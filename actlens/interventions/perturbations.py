"""Perturbations: what is done to an observation and when, before the network sees any of it.

They are to an observation what interventions are to activations: values that save, with the same
schedules, and that run on a single scene, in a pair, or in a rollout.

view = PerturbedView(Perturbation((Blur(2.0),), Schedule(start=10)))
action = model.select_action(view(observation, control_step))
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from actlens.errors import InterventionError
from actlens.interventions.corruptions import (
    CORRUPTIONS,
    Blackout,
    Blur,
    Brightness,
    CameraSwap,
    Contrast,
    Corruption,
    FrozenCamera,
    Instant,
    Occlusion,
    PixelNoise,
    Shift,
    StateNoise,
    StateOffset,
)
from actlens.interventions.intervention import ALWAYS, Schedule
from actlens.scene import Observation, Scene, ScenePair
from actlens.text import quoted


@dataclass(frozen=True)
class Perturbation:
    """Corruptions that are made one after the other, and the control steps at which they are."""

    corruptions: tuple[Corruption, ...]
    schedule: Schedule = ALWAYS

    def __post_init__(self) -> None:
        if not self.corruptions:
            raise InterventionError("A perturbation without corruptions changes nothing.")

    def apply(self, observation: Observation, instant: Instant | None = None) -> Observation:
        """What is seen instead, or the observation itself where the schedule says so.

        Raises:
            SceneError: if the observation lacks what a corruption works on.
        """
        instant = instant or Instant()
        if self.schedule.acts_at(instant.control_step):
            for corruption in self.corruptions:
                observation = corruption.apply(observation, instant)
        return observation

    def __str__(self) -> str:
        return " + ".join(map(_described, self.corruptions))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings."""
        return {
            "corruptions": [{"kind": type(c).__name__, **asdict(c)} for c in self.corruptions],
            "schedule": asdict(self.schedule),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            InterventionError: naming the entry that is missing or not understood.
        """
        try:
            return cls(tuple(map(_loaded, saved["corruptions"])), Schedule(**saved["schedule"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InterventionError(
                f"This is no saved perturbation ({type(error).__name__}: {error})."
            ) from error


class PerturbedView:
    """What a policy sees of a rollout: `view(observation, control_step)`, step by step.

    It remembers the observation at which the perturbation set in, for `FrozenCamera`. Control steps
    rise within a rollout: one that does not lie behind the one before begins another, and what was
    remembered is forgotten.

    Args:
        episode: rollouts of other episodes see other noise; those of one episode the same.
    """

    def __init__(self, perturbation: Perturbation, *, episode: int = 0):
        self.perturbation = perturbation
        self._episode = episode
        self._first: Observation | None = None
        self._last_step = -1

    def __call__(self, observation: Observation, control_step: int) -> Observation:
        """What is seen at this control step; the observation itself where nothing acts."""
        if control_step <= self._last_step:
            self._first = None
        self._last_step = control_step
        if self._first is None and self.perturbation.schedule.acts_at(control_step):
            self._first = {key: value.clone() for key, value in observation.items()}
        instant = Instant(control_step, self._episode, self._first)
        return self.perturbation.apply(observation, instant)


def perturbed_pair(
    perturbation: Perturbation,
    scene: Scene,
    *,
    unrelated: Scene | None = None,
    first: Observation | None = None,
) -> ScenePair:
    """The scene as it is (clean) and as it looks perturbed (corrupt): a nuisance pair.

    The world, and with it the demonstrated action and the labels, is the same in both. Noise is
    drawn by episode and frame; schedules concern rollouts and are not asked.

    Args:
        unrelated: another scene, perturbed alike: the donors of the null.
        first: what a frozen camera shows.
    """

    def corrupt(of: Scene) -> Scene:
        observation: Observation = of.observation
        for corruption in perturbation.corruptions:
            observation = corruption.apply(observation, Instant(of.frame, of.episode, first))
        return replace(of, observation=observation)

    donors = () if unrelated is None else (unrelated, corrupt(unrelated))
    return ScenePair(scene, corrupt(scene), str(perturbation), *donors)


def usual_suite(cameras: Sequence[str]) -> dict[str, tuple[Perturbation, ...]]:
    """Name -> perturbations of rising severity: the usual corruptions for a policy's cameras.

    Pixels are those of pictures of about 240 x 320; joint positions are in degrees and percent.
    Two cameras are swapped where there are exactly two.
    """
    of = lambda *corruptions: tuple(Perturbation((corruption,)) for corruption in corruptions)
    suite = {
        "blur": of(Blur(1.0), Blur(2.0), Blur(4.0)),
        "pixel noise": of(PixelNoise(0.05), PixelNoise(0.1), PixelNoise(0.2)),
        "darker": of(Brightness(0.8), Brightness(0.6), Brightness(0.4)),
        "brighter": of(Brightness(1.2), Brightness(1.4), Brightness(1.8)),
        "contrast": of(Contrast(0.8), Contrast(0.6), Contrast(0.4)),
        "shift right": of(Shift(right=2), Shift(right=6), Shift(right=18)),
        "shift down": of(Shift(down=2), Shift(down=6), Shift(down=18)),
        "state noise": of(StateNoise(1.0), StateNoise(3.0), StateNoise(9.0)),
        "state offset": of(StateOffset((1.0,)), StateOffset((3.0,)), StateOffset((9.0,))),
    }
    for camera in cameras:
        only = (camera,)
        cards = (Occlusion.around(0.5, 0.5, size, cameras=only) for size in (0.15, 0.3, 0.6))
        suite[f"{camera} occluded"] = of(*cards)
        suite[f"{camera} black"] = of(Blackout(cameras=only))
        suite[f"{camera} frozen"] = of(FrozenCamera(cameras=only))
    if len(cameras) > 1:
        suite["all frozen"] = of(FrozenCamera())
    if len(cameras) == 2:
        suite["cameras swapped"] = of(CameraSwap(*cameras))
    return suite


def _described(corruption: Corruption) -> str:
    """`Blur(sigma=2.0)`: the fields that differ from their defaults."""
    given = {f.name: (getattr(corruption, f.name), f.default) for f in fields(corruption)}
    shown = ", ".join(f"{k}={v!r}" for k, (v, default) in given.items() if v != default)
    return f"{type(corruption).__name__}({shown})"


def _loaded(saved: Mapping[str, Any]) -> Corruption:
    kinds = {kind.__name__: kind for kind in CORRUPTIONS}
    if saved["kind"] not in kinds:
        raise InterventionError(
            f"{quoted(saved['kind'])} is no corruption; there are {', '.join(kinds)}."
        )
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name != "kind"
    }
    return kinds[saved["kind"]](**values)
