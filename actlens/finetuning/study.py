"""Adapt a policy to new places by one part after the other, and measure what it gains and forgets.

New places are tried on the half of their episodes that was not trained on, then halves exchange.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.kept import KeptScenes
from actlens.finetuning.locality import Locality, locality
from actlens.finetuning.parts import decoder_mlp, head
from actlens.finetuning.rank_one import matrices, rank_one_ways
from actlens.finetuning.result import NEW, Finetuning, Outcome
from actlens.finetuning.scoring import Errors, averaged, errors, joined
from actlens.finetuning.training import Recipe, Training
from actlens.finetuning.tuned import TunedPart
from actlens.finetuning.ways import Budget, Way, standard_ways
from actlens.kinematics import Arm, known_arm
from actlens.model.act import HookedACT
from actlens.scene import Scene

_Half = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]
"""Numbers of the episodes that are trained on, and of those that are tried."""


@dataclass(frozen=True)
class Material:
    """Scenes with demonstrated actions."""

    new: Sequence[Scene]
    """At the new places: trained and tried on, by halves of the episodes."""
    elsewhere: Mapping[str, Sequence[Scene]]
    """What else it is tried on, by name; never trained on."""
    demonstrations: Sequence[Scene] = ()
    """Of what the policy knows: rehearsed, and what a rank-one edit should leave alone. Not tried
    on. Episode by episode."""


@dataclass(frozen=True)
class Options:
    """What is done with the material."""

    recipe: Recipe = field(default_factory=Recipe)
    n_demonstrations: int | None = None
    """Episodes that are trained on; all of a half if None."""
    seeds: int = 1
    """Trainings of every part, with other batches, other subspaces and other choices of the step
    size; errors are averaged over them."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or (self.n_demonstrations or 1) < 1:
            raise FinetuningError(f"{self}: at least one seed and one demonstration.")


QUICK = Options(Recipe(steps=50, rates=(0.02, 0.1)))
"""Half the steps and two step sizes: for a first look."""


def finetune(
    model: HookedACT,
    material: Material,
    ways: Sequence[Way] | None = None,
    options: Options | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Finetuning:
    """Train every part on half of the new places; measure on the other half and elsewhere.

    The policy is left as it is. Its image trunk is never trained: every scene is run once.

    Args:
        ways: `standard_ways(model)` if not given. If there are demonstrations, rank-one edits are
            added.
        progress: called with what is done, how much of it is done, and how much there is.

    Raises:
        FinetuningError: if there are fewer than two new episodes, or too few demonstrations for
            what is asked for.
        SceneError: if a scene does not fit the policy.
    """
    options = options or Options()
    ways = standard_ways(model) if ways is None else tuple(ways)
    kept = _Kept.of(model, material, ways, progress)
    halves = _halves(kept.new)
    arm = known_arm(model.config.joints, model.checkpoint.source if model.checkpoint else "")
    rehearsed = kept.known if options.recipe.rehearsal else None
    n_edits = len(matrices(model)) + 1 if kept.known else 0
    total, done = (len(ways) + n_edits) * len(halves) * options.seeds, 0
    found: dict[str, list[_Tried]] = {}
    for number, (train, test) in enumerate(halves):
        new = kept.new.of_episodes(train[: options.n_demonstrations])
        own = (*ways, *(rank_one_ways(model, kept.known, new) if kept.known else ()))
        for way in own:
            for seed in range(options.seeds):
                progress(f"training: {way.name}", done, total)
                tuned = _trained(model, way, options, seed, new, rehearsed)
                tried = _tried(model, kept, test, _Training(way, number, tuned), arm)
                found.setdefault(way.name, []).append(tried)
                done += 1
    progress("training", done, total)
    untouched = _untouched(model)
    before = {NEW: errors(model, kept.new, untouched, arm)} | {
        name: errors(model, scenes, untouched, arm) for name, scenes in kept.elsewhere.items()
    }
    outcomes = tuple(_outcome(tries) for tries in found.values())
    spread = _locality(model, kept, halves, outcomes, arm)
    return Finetuning(before, outcomes, options, len(halves[0][0]), spread)


@dataclass(frozen=True)
class _Kept:
    new: KeptScenes
    elsewhere: Mapping[str, KeptScenes]
    known: KeptScenes | None

    @classmethod
    def of(
        cls,
        model: HookedACT,
        material: Material,
        ways: Sequence[Way],
        progress: Callable[[str, int, int], None],
    ) -> "_Kept":
        parts = [way.part for way in ways] + [matrix.part for matrix in matrices(model)]
        sets = [material.new, *material.elsewhere.values(), material.demonstrations]
        total, done = sum(map(len, sets)), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress("running scenes", done, total)

        keep = lambda scenes: KeptScenes.of(model, scenes, parts, progress=advance)
        known = material.demonstrations
        return cls(
            keep(material.new),
            {name: keep(scenes) for name, scenes in material.elsewhere.items()},
            keep(known) if known else None,
        )


@dataclass(frozen=True)
class _Training:
    """One training: of what, on which half."""

    way: Way
    half: int
    tuned: TunedPart


@dataclass(frozen=True)
class _Tried:
    """One training and its errors."""

    of: _Training
    new: Errors
    elsewhere: Mapping[str, Errors]


def _halves(
    new: KeptScenes,
) -> Sequence[_Half]:
    """Every other episode, and the others; then the other way round."""
    episodes = np.unique(new.episodes)
    if len(episodes) < 4:
        raise FinetuningError(
            f"{len(episodes)} episodes at new places cannot be halved: give at least four."
        )
    odd, even = episodes[1::2], episodes[::2]
    return [(even, odd), (odd, even)]


def _trained(
    model: HookedACT,
    way: Way,
    options: Options,
    seed: int,
    new: KeptScenes,
    old: KeptScenes | None,
) -> TunedPart:
    recipe = replace(options.recipe, seed=options.recipe.seed + seed)
    training = Training(model, way.part, way.with_seed(recipe.seed).update, recipe)
    return training.fit(new, training.choose_rate(new, old), old)


def _tried(
    model: HookedACT, kept: _Kept, test: np.ndarray, one: _Training, arm: Arm | None
) -> _Tried:
    return _Tried(
        one,
        errors(model, kept.new.of_episodes(test), one.tuned, arm),
        {name: errors(model, scenes, one.tuned, arm) for name, scenes in kept.elsewhere.items()},
    )


def _outcome(tries: Sequence[_Tried]) -> Outcome:
    first, second = ([one for one in tries if one.of.half == half] for half in (0, 1))
    after = {NEW: joined([averaged([one.new for one in half]) for half in (first, second)])} | {
        name: averaged([one.elsewhere[name] for one in tries]) for name in tries[0].elsewhere
    }
    return Outcome(
        tries[0].of.way,
        after,
        (first[0].of.tuned, second[0].of.tuned),
        tuple(one.of.tuned.rate for one in tries),
        _seed_spread(first, second),
    )


def _seed_spread(
    first: Sequence[_Tried], second: Sequence[_Tried]
) -> Float[np.ndarray, " measure"]:
    """Standard deviation over seeds of the error at new places; NaN for one seed."""
    runs = [joined([a.new, b.new]) for a, b in zip(first, second, strict=True)]
    means = np.array([run.sums.sum(1) / run.n.sum() for run in runs])
    return means.std(0, ddof=1) if len(runs) > 1 else np.full(means.shape[1], np.nan)


def _untouched(model: HookedACT) -> TunedPart:
    part = head(model)
    weights = part.weights(model)
    return TunedPart(part, weights, weights, 0, float("nan"))


def _locality(
    model: HookedACT,
    kept: _Kept,
    halves: Sequence[_Half],
    outcomes: Sequence[Outcome],
    arm: Arm | None,
) -> Locality | None:
    """Of the MLP's own training, if it was trained as a whole and there is one decoder block."""
    mlp = decoder_mlp(model)
    whole = [o for o in outcomes if o.way.part == mlp and o.way.budget is Budget.WHOLE]
    if not whole or model.config.n_decoder_layers > 1:
        return None
    return locality(
        model,
        [
            (kept.new.of_episodes(train), kept.new.of_episodes(test), tuned)
            for (train, test), tuned in zip(halves, whole[0].tuned, strict=True)
        ],
        arm,
    )
