"""What a decoded chunk gets right, asked of all scenes alike: questions in the place of annotators.

Toker et al. (2024) had people, and a language model, say at which layer an image shows what was
asked for. A motion can be checked without either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from actlens.lens.decodings import Decodings, State
from actlens.lens.errors import Scale, labels
from actlens.lens.places import MEAN_ACTION, Part, Variant
from actlens.statistics import Interval, pooled_ratio, wilson

SHARE = 0.9
"""Of the final rate, which the layer of emergence reaches first."""
_DRAWS = 2000


class Question(StrEnum):
    """What is asked of a chunk; only where the expert's chunk allows an answer."""

    REACHES = "reaches the cube"
    """At the position at which the expert's gripper is nearest to the cube, is this one near the
    expert's? Asked where the expert starts far away and gets there within the chunk."""
    IDENTIFIED = "is this scene's"
    """Is it nearer to this scene's expert than to those of other scenes of the same moment?"""
    CLOSES = "closes in time"
    """Does the gripper close when the expert's does?"""


@dataclass(frozen=True)
class Asking:
    """What counts as a yes."""

    within_mm: float = 20.0
    """Of the expert's gripper tip."""
    far_mm: float = 50.0
    """From the cube, at least, is the expert at first."""
    steps: int = 3
    """Chunk positions by which the gripper may close early or late."""
    among: int = 10
    """Scenes that this one is told from, itself included; chance is one in that."""
    gripper: int | None = None
    """Which joint it is; small numbers are closed. None: there is none."""
    gripper_range: float = 0.0
    """Of the demonstrations, in dataset units; half of it is a closing."""


def question_rows(all_of: Sequence[Decodings], scale: Scale, asking: Asking) -> list[dict]:
    """One row per set, moment, state and question: how often the answer is yes.

    `null` is the mean action's rate; of `IDENTIFIED`, chance.
    """
    rows = []
    for part, question, yes, null in _asked(all_of, scale, asking):
        for i, state in enumerate(part.states):
            rate = _rate(yes[i], part.episodes, scale.seed)
            rows.append(
                labels(part, state)
                | {"question": question, "rate": float(rate.estimate)}
                | {"rate_low": float(rate.low), "rate_high": float(rate.high)}
                | {"null": float(null.estimate)}
            )
    return rows


def emergence_rows(all_of: Sequence[Decodings], scale: Scale, asking: Asking) -> list[dict]:
    """The first encoder layer with nine tenths of the final rate, by set, moment and variant.

    `layer` is NaN where the intervals of the policy's own rate and of the null overlap; `same` is
    the share of resamples of episodes with that very layer.
    """
    rows = []
    for part, question, yes, null in _asked(all_of, scale, asking):
        keys = {"set": part.name, "when": part.when, "question": question}
        size = {"scenes": len(part.episodes), "episodes": len(np.unique(part.episodes))}
        for variant in (Variant.RAW, Variant.RENORM, Variant.TUNED, Variant.SHUFFLED):
            at = _depth(part.states, variant)
            if len(at) > 1:
                found = _emergence(yes[at], part.episodes, null, scale.seed)
                rows.append(
                    keys | {"variant": variant} | size | found | {"null": float(null.estimate)}
                )
    return rows


def _asked(
    all_of: Sequence[Decodings], scale: Scale, asking: Asking
) -> Iterator[tuple[Decodings, Question, Float[np.ndarray, "state scene"], Interval]]:
    """Every question with the scenes it is asked of, the answers and the null."""
    for part in all_of:
        for question in Question:
            yes = answers(question, part, scale, asking)
            asked = np.isfinite(yes[0])
            if asked.any():
                kept, yes = part.only(asked), yes[:, asked]
                yield kept, question, yes, _null(question, kept, yes, scale, asking)


def answers(
    question: Question, part: Decodings, scale: Scale, asking: Asking
) -> Float[np.ndarray, "state scene"]:
    """1 for yes, 0 for no, a chance in between where scenes are drawn; NaN where it isn't asked."""
    match question:
        case Question.REACHES:
            return _reaches(part, scale, asking)
        case Question.IDENTIFIED:
            return _identified(part, scale, asking)
        case Question.CLOSES:
            return _closes(part, asking)


def _reaches(part: Decodings, scale: Scale, asking: Asking) -> Float[np.ndarray, "state scene"]:
    if scale.arm is None:
        return np.full(part.chunks.shape[:2], np.nan)
    expert = scale.arm.tip(part.expert)
    apart = 1000 * np.linalg.norm(expert - part.cube[:, None], axis=-1)
    counted = np.where((part.weights > 0) & np.isfinite(apart), apart, np.inf)
    step = counted.argmin(1)
    scene = np.arange(len(step))
    asked = (counted[scene, step] < asking.within_mm) & (apart[:, 0] > asking.far_mm)
    there = scale.arm.tip(part.chunks[:, scene, step])
    near = 1000 * np.linalg.norm(there - expert[scene, step], axis=-1) <= asking.within_mm
    return np.where(asked, near, np.nan)


def _identified(part: Decodings, scale: Scale, asking: Asking) -> Float[np.ndarray, "state scene"]:
    """The chance to be nearest among `among` scenes, the others drawn from those of the moment."""
    chunks, expert = part.chunks / scale.moving, part.expert / scale.moving
    found = np.full(chunks.shape[:2], np.nan)
    for scene, weights in enumerate(part.weights):
        others = (part.frames == part.frames[scene]) & (part.episodes != part.episodes[scene])
        if not others.any() or not weights.any():
            continue
        root = np.sqrt(weights)[:, None]
        from_all = lambda x, root=root: np.linalg.norm(
            (x * root).reshape(*x.shape[:-2], -1), axis=-1
        )
        own = from_all(chunks[:, scene] - expert[scene])
        nearer = from_all(chunks[:, scene, None] - expert[others]) < own[:, None]
        drawn = min(asking.among, int(others.sum()) + 1) - 1
        found[:, scene] = stats.hypergeom.pmf(0, others.sum(), nearer.sum(1), drawn)
    return found


def _closes(part: Decodings, asking: Asking) -> Float[np.ndarray, "state scene"]:
    if asking.gripper is None or asking.gripper_range <= 0:
        return np.full(part.chunks.shape[:2], np.nan)
    half = asking.gripper_range / 2
    expert = closing_step(part.expert[..., asking.gripper], half)
    counted = (part.weights > 0).sum(1)
    asked = (expert >= 0) & (expert < counted)
    step = closing_step(part.chunks[..., asking.gripper], half)
    in_time = (step >= 0) & (np.abs(step - expert) <= asking.steps)
    return np.where(asked, in_time, np.nan)


def closing_step(
    gripper: Float[np.ndarray, "*batch chunk"], drop: float
) -> Int[np.ndarray, "*batch"]:
    """The first position at which the gripper is that much below its widest so far; -1 if never."""
    closed = np.maximum.accumulate(gripper, axis=-1) - gripper >= drop
    return np.where(closed.any(-1), closed.argmax(-1), -1)


def _null(
    question: Question, part: Decodings, yes: np.ndarray, scale: Scale, asking: Asking
) -> Interval:
    """What the mean action gets right; of telling scenes apart, chance."""
    if question is not Question.IDENTIFIED:
        mean = yes[part.states.index(State(MEAN_ACTION, Variant.MEAN))]
        return _rate(mean, part.episodes, scale.seed)
    frames, counts = np.unique(part.frames, return_counts=True)
    most = dict(zip(frames.tolist(), counts.tolist(), strict=True))
    chances = [1 / min(asking.among, most[frame]) for frame in part.frames.tolist()]
    chance = np.asarray(np.mean(chances))
    return Interval(chance, chance, chance)


def _rate(
    yes: Float[np.ndarray, " scene"], episodes: Int[np.ndarray, " scene"], seed: int
) -> Interval:
    """Wilson's interval where scenes are independent and answers plain, else by episode."""
    alone = len(np.unique(episodes)) == len(episodes)
    if alone and np.isin(yes, (0.0, 1.0)).all():
        low, high = wilson(int(yes.sum()), len(yes))
        return Interval(np.asarray(yes.mean()), np.asarray(low), np.asarray(high))
    return pooled_ratio(yes, np.ones_like(yes), clusters=episodes, seed=seed)


def _depth(states: Sequence[State], variant: Variant) -> list[int]:
    """The encoder's states of a variant by depth; the last is the policy itself."""
    encoder = [
        (state.place.layer, i) for i, state in enumerate(states) if state.place.part is Part.ENCODER
    ]
    last = max((layer for layer, _ in encoder), default=0)
    kept = [(layer, i) for layer, i in encoder if states[i].variant is variant or layer == last]
    return [i for _, i in sorted(kept)]


def _emergence(
    yes: Float[np.ndarray, "layer scene"],
    episodes: Int[np.ndarray, " scene"],
    null: Interval,
    seed: int,
) -> dict[str, float]:
    final = _rate(yes[-1], episodes, seed)
    found = {"final": float(final.estimate), "layer": np.nan, "same": np.nan}
    if not final.low > null.high:  # False for NaN
        return found
    names, of = np.unique(episodes, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, len(names), (_DRAWS, len(names)))
    times = np.zeros((len(names), _DRAWS))
    np.add.at(times, (drawn, np.arange(_DRAWS)[:, None]), 1.0)
    layer = int(_first(yes.mean(1, keepdims=True))[0])
    again = _first((yes @ times[of]) / times[of].sum(0))
    return found | {"layer": float(layer), "same": float((again == layer).mean())}


def _first(rates: Float[np.ndarray, "layer draw"]) -> Int[np.ndarray, " draw"]:
    reached: Bool[np.ndarray, "layer draw"] = rates >= SHARE * rates[-1]
    return reached.argmax(0)
