"""Edit success by site beside causal tracing, as tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.notebook import DrawnAsTable
from actlens.rome.explained import Explained, explained
from actlens.statistics import Interval, false_discovery, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd

Table = Float[np.ndarray, "request block"]


@dataclass(frozen=True)
class Outcomes:
    """What one kind of edit does, as shares of the change that was asked for.

    Where no edit could be made nothing changes: nothing is reached, near or far, and the norm is
    NaN.
    """

    reached: Table
    """Along the change, in the request's own scene: 1 is all of it."""
    granted: Bool[np.ndarray, "request block"]
    """Whether every requested action is within the tolerance, in dataset units."""
    near: Table
    """As `reached`, mean over the scenes near the request's; NaN where there are none."""
    far: Table
    """Any change, root mean square over requests' scenes of other episodes."""
    relative_norm: Table
    """|W' - W| / |W|."""

    @property
    def score(self) -> Table:
        """Harmonic mean of efficacy, generalisation and specificity (Meng et al. 2022, 3.4).

        Of `reached`, `near` (where known) and 1 - `far`, each within 0 and 1.
        """
        parts = np.stack([self.reached, self.near, 1 - self.far]).clip(0, 1)
        known = np.isfinite(parts)
        inverse = np.where(known, 1 / np.maximum(np.where(known, parts, 1.0), 1e-12), 0.0)
        return np.where((parts == 0).any(0), 0.0, known.sum(0) / inverse.sum(0))


@dataclass(frozen=True)
class SiteSuccess(DrawnAsTable):
    """Edits of every request at every block, random sites, and the causal-tracing score.

    That an edit works at a block is no evidence that the behaviour is stored there (Hase et al.
    2023): `explained` says how much of its success tracing accounts for.
    """

    blocks: tuple[str, ...]
    requests: tuple[str, ...]
    """The addresses of their scenes."""
    episodes: Int[np.ndarray, " request"]
    traced: Table
    """Share of the action that comes back with the block's clean MLP output in a noised run."""
    corrupted: Float[np.ndarray, " request"]
    """How far the noise moves the action: root mean square, normalised."""
    edits: Outcomes
    """Of the block's MLP, at the scene's own keys."""
    random_neurons: Outcomes
    """The same values at the same keys, in the columns of a random share of the block's neurons."""
    random_keys: Outcomes
    """An edit of the same size and values at keys of other scenes."""
    share: float
    """Of the neurons that `random_neurons` may change."""
    failures: tuple[tuple[str, ...], ...]
    """Why there is no edit, by request and block; empty where there is one."""

    @property
    def outcomes(self) -> Mapping[str, Table]:
        """What of the edits tracing might explain."""
        edits = self.edits
        return {
            "efficacy": edits.granted.astype(float),
            "reached": edits.reached,
            "near": edits.near,
            "far": edits.far,
            "score": edits.score,
            "log_norm": np.log10(edits.relative_norm),
        }

    def frame(self) -> "pd.DataFrame":
        """One row per request and block."""
        import pandas as pd

        n_requests, n_blocks = self.traced.shape
        columns: dict[str, object] = {
            "request": np.repeat(np.arange(n_requests), n_blocks),
            "scene": np.repeat(np.array(self.requests, dtype=object), n_blocks),
            "episode": np.repeat(self.episodes, n_blocks),
            "block": list(self.blocks) * n_requests,
            "traced": self.traced.ravel(),
            "corrupted": np.repeat(self.corrupted, n_blocks),
        }
        kinds = {"": self.edits, "neurons_": self.random_neurons, "keys_": self.random_keys}
        for prefix, one in kinds.items():
            for name in ("granted", "reached", "near", "far", "relative_norm", "score"):
                columns[f"{prefix}{name}"] = getattr(one, name).ravel()
        columns["failure"] = [message for row in self.failures for message in row]
        return pd.DataFrame(columns)

    def summary(self, *, seed: int = 0) -> "pd.DataFrame":
        """One row per block: means over requests, with intervals by episode.

        `traced_low` and `traced_high` bound `traced`, and so on; `failed` counts requests.
        """
        import pandas as pd

        rows: dict[str, object] = {
            "block": self.blocks,
            "failed": [sum(map(bool, column)) for column in zip(*self.failures, strict=True)],
        }
        tables = {"traced": self.traced}
        kinds = {"": self.edits, "neurons_": self.random_neurons, "keys_": self.random_keys}
        for prefix, one in kinds.items():
            for name in ("granted", "reached", "near", "far", "relative_norm", "score"):
                tables[f"{prefix}{name}"] = getattr(one, name).astype(float)
        for name, table in tables.items():
            found = self._mean(table, seed)
            rows |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
        return pd.DataFrame(rows)

    def explained(self, *, seed: int = 0) -> dict[str, Explained]:
        """For every outcome, how much of its variance the tracing score explains."""
        return {
            name: explained(table, self.traced, self.episodes, seed=seed)
            for name, table in self.outcomes.items()
        }

    def explained_frame(self, *, seed: int = 0) -> "pd.DataFrame":
        """One row per outcome, columns as the fields of `Explained`, and `q`.

        `q` is `p` adjusted for the several outcomes (Benjamini and Hochberg).
        """
        import pandas as pd

        found = self.explained(seed=seed)
        adjusted = false_discovery(np.array([one.p for one in found.values()]))
        rows = zip(found.items(), adjusted, strict=True)
        return pd.DataFrame([{"outcome": name} | vars(one) | {"q": q} for (name, one), q in rows])

    def picks(self) -> float:
        """Share of requests whose best-traced block is the one where the edit scores best.

        A blind choice is right once in as many times as there are blocks.
        """
        known = np.isfinite(self.traced).all(1)
        best = self.edits.score[known].argmax(1) == self.traced[known].argmax(1)
        return float(best.mean()) if known.any() else float("nan")

    def _mean(self, table: Table, seed: int) -> Interval:
        rows = table.T
        return pooled_ratio(
            rows, np.where(np.isfinite(rows), 1.0, np.nan), clusters=self.episodes, seed=seed
        )
