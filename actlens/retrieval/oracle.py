"""Keys that see the world itself: where the object is and how far the task has come."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.errors import Yardstick
from actlens.retrieval.estimators import Memory, Retrieval
from actlens.retrieval.keys import RetrievalError

FRAME = "frame"
"""How far the task has come."""
ORACLE = "task state (oracle)"
"""The site's name."""
_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_PASSES = 2


@dataclass(frozen=True)
class TaskState:
    """A distance in task space: labels and the frame, each divided by its spread and weighted.

    The weights are those whose nearest demonstration of another episode errs least. A poor oracle
    would make any policy look as if it generalised, so it must not be one.
    """

    names: tuple[str, ...]
    mean: Float[np.ndarray, " label"]
    factor: Float[np.ndarray, " label"]
    """Weight over spread."""

    @classmethod
    def of(
        cls,
        demonstrations: Demonstrations,
        yardstick: Yardstick,
        labels: Sequence[str] | None = None,
    ) -> "TaskState":
        """Weights chosen one after another, twice round.

        Args:
            labels: what is known of the world; all labels that the scenes have if not given.

        Raises:
            RetrievalError: if the scenes do not have such labels, or have none that varies.
        """
        names = (*(demonstrations.labels if labels is None else labels), FRAME)
        values = _values(demonstrations, names)
        mean, spread = values.mean(0), values.std(0)
        if not (spread[:-1] > 1e-9).any():
            raise RetrievalError(
                "No label of the scenes varies: retrieval by task state needs to know where the "
                "object is (`cube_x`, `cube_y`, …)."
            )
        unit = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-9)
        n = len(demonstrations)
        answers = (demonstrations.actions / yardstick.unit).reshape(n, -1)
        counted = np.repeat(demonstrations.counted, demonstrations.actions.shape[-1], axis=1)

        def error(weights: np.ndarray) -> float:
            keys = (values - mean) * unit * weights
            memory = Memory(keys, answers, counted, demonstrations.episodes)
            return memory.error(Retrieval(1).across_episodes(memory))

        weights, varying = np.ones(len(names)), np.flatnonzero(unit)
        for _ in range(_PASSES):
            for i in varying:
                tried = [np.where(np.arange(len(names)) == i, w, weights) for w in _WEIGHTS]
                weights = min((t for t in tried if (t * unit).any()), key=error)
        return cls(names, mean, unit * weights)

    def keys(self, scenes: Demonstrations) -> Float[np.ndarray, "scene label"]:
        """Of any scenes with these labels; their plain Euclidean distance is the oracle's.

        Raises:
            RetrievalError: if a label is missing.
        """
        return (_values(scenes, self.names) - self.mean) * self.factor


def _values(scenes: Demonstrations, names: Sequence[str]) -> Float[np.ndarray, "scene label"]:
    missing = [name for name in names if name != FRAME and name not in scenes.labels]
    if missing:
        known = ", ".join(scenes.labels) or "none"
        raise RetrievalError(f"Scenes have no label {missing[0]!r} in common; they have {known}.")
    columns = [scenes.frames if name == FRAME else scenes.labels[name] for name in names]
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], 1)
