"""Retrieval at every site, against smoother rivals that read the same keys, and the policy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.notebook import DrawnAsTable
from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.errors import ALL_JOINTS, Errors, Yardstick
from actlens.retrieval.estimators import LADDER, Estimator, Memory
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.metric import KeyMap, Metric, compact
from actlens.retrieval.oracle import ORACLE, TaskState

if TYPE_CHECKING:
    import pandas as pd

PHASE = "frame alone"
"""The site that sees only how far the episode has come: what the mean motion explains."""
POLICY = "policy"


@dataclass(frozen=True)
class Rung:
    """What one estimator answers from one site's keys."""

    site: str
    metric: Metric
    estimator: str
    errors: Errors
    answered: Float[np.ndarray, "scene chunk joint"]
    """NaN where a position could not be answered."""


@dataclass(frozen=True)
class Ladder(DrawnAsTable):
    """Errors of retrieval and its rivals at every site, on the same scenes as the policy.

    `held_out`: on scenes that are not demonstrations. Otherwise every demonstration is answered
    without its own episode, and the policy's error is that on its own training scenes.
    """

    rungs: tuple[Rung, ...]
    policy: Errors
    episodes: Int[np.ndarray, " scene"]
    held_out: bool

    def rung(self, site: str, estimator: str, metric: Metric = Metric.STANDARDISED) -> Rung:
        """One of them.

        Raises:
            RetrievalError: if there is none.
        """
        for rung in self.rungs:
            if (rung.site, rung.estimator, rung.metric) == (site, estimator, metric):
                return rung
        raise RetrievalError(
            f"There is no rung {estimator!r} at {site!r} with {metric} distance; sites are "
            f"{', '.join(dict.fromkeys(rung.site for rung in self.rungs))}."
        )

    def frame(self) -> "pd.DataFrame":
        """One row a site, metric, estimator and measure; errors in the measure's unit.

        `to_policy`: the error as a multiple of the policy's. Intervals are by episode.
        """
        import pandas as pd

        rows = []
        nothing = Rung(POLICY, Metric.PLAIN, "", self.policy, np.empty(0))
        for rung in (nothing, *self.rungs):
            named = (rung.site, str(rung.metric) if rung.answered.size else "", rung.estimator)
            mean = rung.errors.mean(self.episodes)
            ratio = rung.errors.over(self.policy, self.episodes)
            columns = (mean.estimate, mean.low, mean.high, ratio.estimate, ratio.low, ratio.high)
            by_measure = zip(rung.errors.measures, *columns, strict=True)
            rows += [(*named, *numbers) for numbers in by_measure]
        return pd.DataFrame(
            rows,
            columns=[
                "site",
                "metric",
                "estimator",
                "measure",
                "error",
                "low",
                "high",
                "to_policy",
                "to_policy_low",
                "to_policy_high",
            ],
        )

    def best(self, measure: str = ALL_JOINTS, *, oracle: bool = False) -> Rung:
        """The retrieving rung with the least error (estimators that are named after neighbours).

        Args:
            oracle: also among those that see the world itself.
        """
        found = [r for r in self.rungs if "-NN" in r.estimator and (oracle or r.site != ORACLE)]
        return min(found, key=lambda r: r.errors.of(measure).sum() / r.errors.n.sum())


def climb(
    demonstrations: Demonstrations,
    yardstick: Yardstick,
    scenes: Demonstrations | None = None,
    *,
    estimators: Sequence[Estimator] = LADDER,
    metrics: Sequence[Metric] = (Metric.STANDARDISED, Metric.COSINE),
    task: TaskState | None = None,
    progress: Callable[[str], None] = lambda site: None,
) -> Ladder:
    """Answer scenes from demonstrations at every site with every estimator.

    Args:
        scenes: whose expert is known, none of them of a demonstration's episode; the demonstrations
            themselves, each without its own episode, if not given.
        metrics: of the policy's sites. The oracle has its own distance.
        task: adds retrieval by task state; it needs labels.
        progress: told each site when its turn comes.

    Raises:
        RetrievalError: if demonstrations of other episodes are fewer than an estimator asks for, or
            the scenes lack a site.
    """
    own = scenes is None
    asked = demonstrations if scenes is None else scenes
    missing = [name for name in demonstrations.keys if name not in asked.keys]
    if missing:
        raise RetrievalError(f"The scenes have no keys of the site {missing[0]!r}.")
    tables = [
        (name, metric, demonstrations.keys[name], asked.keys[name])
        for name in demonstrations.keys
        for metric in metrics
    ]
    by_frame = lambda d: d.frames[:, None].astype(np.float64)
    tables.append((PHASE, Metric.PLAIN, by_frame(demonstrations), by_frame(asked)))
    if task is not None:
        tables.append((ORACLE, Metric.PLAIN, task.keys(demonstrations), task.keys(asked)))
    rungs = []
    for name, metric, keys, queries in tables:
        progress(name)
        answers = _answers(
            _Question(demonstrations, None if own else asked, keys, queries, metric),
            yardstick,
            estimators,
        )
        for estimator, answered in zip(estimators, answers, strict=True):
            errors = yardstick.errors(answered, asked.actions, asked.counted)
            rungs.append(Rung(name, metric, estimator.name, errors, answered))
    policy = yardstick.errors(asked.predicted, asked.actions, asked.counted)
    return Ladder(tuple(rungs), policy, asked.episodes, held_out=not own)


@dataclass(frozen=True)
class _Question:
    """Which scenes are to be answered from which, by which keys."""

    demonstrations: Demonstrations
    asked: Demonstrations | None
    """None: the demonstrations, each without its own episode."""
    keys: Float[np.ndarray, "scene d"] | Float[np.ndarray, "scene position d"]
    queries: Float[np.ndarray, "scene d"] | Float[np.ndarray, "scene position d"]
    metric: Metric


def _answers(
    question: _Question, yardstick: Yardstick, estimators: Sequence[Estimator]
) -> list[Float[np.ndarray, "scene chunk joint"]]:
    """The chunks that every estimator answers, dataset units."""
    known, asked = question.demonstrations, question.asked or question.demonstrations
    chunk, joints = known.actions.shape[1:]
    found = [np.full((len(asked), chunk, joints), np.nan) for _ in estimators]
    for place in _places(question, asked):
        if not place.wanted.any():
            continue
        rows, positions = place.rows, place.positions
        same = KeyMap.of(question.metric, place.keys)
        answers = (known.actions[rows][:, positions] / yardstick.unit).reshape(rows.sum(), -1)
        counted = np.repeat(known.counted[rows][:, positions], joints, axis=1)
        keys, queries = compact(same(place.keys), same(place.queries))
        memory = Memory(keys, answers, counted, known.episodes[rows])
        for estimator, out in zip(estimators, found, strict=True):
            if question.asked is None:
                answered = estimator.across_episodes(memory)
            else:
                answered = estimator.elsewhere(memory, queries)
            by_joint = answered.reshape(len(answered), len(positions), joints) * yardstick.unit
            out[np.ix_(place.wanted, positions)] = by_joint
    return found


@dataclass(frozen=True)
class _Place:
    """Positions of the chunk that share a key."""

    positions: Int[np.ndarray, " position"]
    rows: Bool[np.ndarray, " scene"]
    """Demonstrations that have such a key."""
    wanted: Bool[np.ndarray, " scene"]
    """Scenes that are asked there."""
    keys: Float[np.ndarray, "row d"]
    queries: Float[np.ndarray, "query d"]


def _places(question: _Question, asked: Demonstrations) -> Iterator[_Place]:
    known, keys, queries = question.demonstrations, question.keys, question.queries
    chunk = known.actions.shape[1]
    if keys.ndim == 2:  # one key, one whole chunk
        every = lambda scenes: np.ones(len(scenes), dtype=bool)
        yield _Place(np.arange(chunk), every(known), every(asked), keys, queries)
        return
    for k in range(chunk):  # nothing was learnt behind an episode's end: no keys are there
        rows, wanted = known.counted[:, k], asked.counted[:, k]
        yield _Place(np.array([k]), rows, wanted, keys[rows, k], queries[wanted, k])
