"""Every lens on scenes that it was not fitted on: errors, questions, and where answers emerge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from actlens.claims import Claim
from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.kinematics import Arm
from actlens.lens.claims import lens_claims
from actlens.lens.decodings import Decodings, demonstrated
from actlens.lens.errors import Scale, error_rows, frame_of, overstatement_rows
from actlens.lens.families import head_lenses, raw_lenses, renorm_lenses, token_lenses
from actlens.lens.places import Part
from actlens.lens.questions import Asking, emergence_rows, question_rows
from actlens.lens.tuning import Tuned, tune
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.notebook import DrawnAsTables
from actlens.scene import Scene

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LensOptions:
    """How lenses are fitted and asked."""

    positions: Positions = Positions.WHOLE
    """Which positions of a chunk count."""
    heads: bool = True
    """Whether single heads are decoded."""
    tokens: bool = True
    """Whether groups of tokens are; at frame 0 alone."""
    asking: Asking = field(default_factory=Asking)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LensStudy(DrawnAsTables):
    """What lenses showed on scenes that none of them was fitted on."""

    tuned: Tuned
    decodings: tuple[Decodings, ...]
    """Of every set of scenes, frame 0 and later ones apart."""
    scale: Scale
    asking: Asking

    def frame(self) -> "pd.DataFrame":
        """The errors: see `error_rows`."""
        return frame_of(error_rows(self.decodings, self.scale))

    def overstatement(self) -> "pd.DataFrame":
        """How many times larger the raw lens' error is than the tuned one's."""
        return frame_of(overstatement_rows(self.decodings, self.scale))

    def questions(self) -> "pd.DataFrame":
        """How often decoded chunks are right: see `Question`."""
        return frame_of(question_rows(self.decodings, self.scale, self.asking))

    def emergence(self) -> "pd.DataFrame":
        """The encoder layer from which on they are."""
        return frame_of(emergence_rows(self.decodings, self.scale, self.asking))

    def claims(self) -> tuple[Claim, ...]:
        """What this says of claims, at frame 0: see `lens_claims`."""
        return lens_claims(self.decodings, self.scale)

    def frames(self) -> dict[str, "pd.DataFrame"]:
        """All tables by name."""
        return {
            "claims": frame_of([vars(claim) for claim in self.claims()]),
            "errors": self.frame(),
            "overstatement": self.overstatement(),
            "questions": self.questions(),
            "emergence": self.emergence(),
        }


def study_lenses(
    model: HookedACT,
    fitted: Sequence[Scene],
    asked: Mapping[str, Sequence[Scene]],
    *,
    arm: Arm | None = None,
    options: LensOptions | None = None,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> LensStudy:
    """Tune the lenses on some demonstrations and try all of them on other scenes.

    Args:
        fitted: demonstrations, some scenes of each.
        asked: sets of scenes by name.
        arm: whose gripper is followed; without, no question about places is asked.

    Raises:
        SceneError: if an episode is fitted on and asked about, there are fewer than four to fit
            on, or a scene has no demonstrated actions.
    """
    options = options or LensOptions()
    of = lambda scenes: {(scene.source, scene.episode) for scene in scenes}
    for name, scenes in asked.items():
        if both := of(fitted) & of(scenes):
            raise SceneError(f"Episode {min(both)[1]} is fitted on and lies in {name!r} as well.")
    asking = replace(options.asking, **_gripper(model, fitted))
    tuned = tune(model, fitted, seed=options.seed, progress=progress)
    heads = head_lenses(model) if options.heads else ()
    plain = [*raw_lenses(model), *renorm_lenses(model), *heads]
    groups = token_lenses(model, tuned.translators) if options.tokens else ()
    wanted = lambda lens: options.heads or lens.place.part is not Part.HEAD
    decodings = []
    for name, scenes in asked.items():
        first = [scene for scene in scenes if scene.frame == 0]
        later = [scene for scene in scenes if scene.frame > 0]
        for some, frame, more in ((first, 0, groups), (later, None, ())):
            if some:
                through = [*plain, *filter(wanted, tuned.lenses(model, frame)), *more]
                made = Decodings.of(name, model, some, through, tuned, options.positions, progress)
                decodings.append(made)
    if not decodings:
        raise SceneError("There is no scene to ask about.")
    one = torch.zeros(model.config.action_dim, dtype=torch.float64)
    spread = spread_of(model, ACTION_KEY, one).numpy(force=True)
    return LensStudy(tuned, tuple(decodings), Scale(spread, arm, options.seed), asking)


def _gripper(model: HookedACT, scenes: Sequence[Scene]) -> dict:
    """Which joint opens and closes, and how far the demonstrations move it."""
    named = [i for i, name in enumerate(model.config.joints) if "gripper" in name.lower()]
    if not named:
        return {"gripper": None, "gripper_range": 0.0}
    positions = np.concatenate([demonstrated(scene)[:, named[-1]] for scene in scenes])
    return {"gripper": named[-1], "gripper_range": float(np.ptp(positions))}
