"""How much better is a decoder on an episode because it has learnt that very episode?

Counterfactual memorisation (Feldman and Zhang 2020, "What neural networks memorize and why", their
definition 1 with the error in place of the accuracy), of the decoder's end behind a frozen encoder:

    mem_i = E[error on i | i was not learnt] - E[error on i | i was learnt]

over decoders that learn random episodes. A rule needs none of them; where nothing but learning by
heart helps, mem_i is the whole error of those who have not seen i.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from actlens.notebook import DrawnAsTable
from actlens.statistics import Interval, false_discovery, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Memorisation(DrawnAsTable):
    """The errors of retrained decoders on every episode, whether they had learnt it or not."""

    errors: Float[np.ndarray, "decoder episode"]
    """Mean absolute error, dataset units (degrees, say), over joints."""
    learnt: Bool[np.ndarray, "decoder episode"]
    indices: tuple[int, ...]
    """The episodes' numbers in the dataset."""
    elsewhere: Mapping[str, Float[np.ndarray, "decoder episode"]] = field(default_factory=dict)
    """The same decoders' errors in other scenes, which neither they nor the encoder have seen."""

    def joined(self, more: "Memorisation") -> "Memorisation":
        """With the decoders of another one of the same episodes."""
        both = lambda a, b: np.concatenate([a, b])
        return Memorisation(
            both(self.errors, more.errors),
            both(self.learnt, more.learnt),
            self.indices,
            {name: both(one, more.elsewhere[name]) for name, one in self.elsewhere.items()},
        )

    def is_known_to(self, standard_error: float) -> bool:
        """Whether `share` is known this well, and every episode's error both ways twice."""
        often = min(self.learnt.sum(0).min(), (~self.learnt).sum(0).min())
        return bool(often > 1 and self.standard_errors[1] <= standard_error)

    @property
    def n_decoders(self) -> int:
        """How many were trained."""
        return len(self.errors)

    @property
    def in_error(self) -> Float[np.ndarray, " episode"]:
        """Of the decoders that had learnt an episode."""
        return _mean_where(self.errors, self.learnt)

    @property
    def out_error(self) -> Float[np.ndarray, " episode"]:
        """Of those that had not."""
        return _mean_where(self.errors, ~self.learnt)

    @property
    def by_episode(self) -> Float[np.ndarray, " episode"]:
        """mem_i, dataset units."""
        return self.out_error - self.in_error

    @property
    def mean(self) -> Interval:
        """Of mem_i over episodes; the interval is by episode."""
        values = self.by_episode
        return pooled_ratio(values, np.ones_like(values))

    @property
    def share(self) -> Interval:
        """Of the error on episodes that were not learnt: 0 a rule, 1 nothing but memory."""
        return pooled_ratio(self.by_episode, self.out_error)

    @property
    def error_in(self) -> Interval:
        """Mean error on episodes that were learnt."""
        return pooled_ratio(self.in_error, np.ones(len(self.indices)))

    @property
    def error_out(self) -> Interval:
        """Mean error on episodes that were not learnt."""
        return pooled_ratio(self.out_error, np.ones(len(self.indices)))

    @property
    def error_elsewhere(self) -> dict[str, Interval]:
        """Mean errors in other scenes."""
        return {
            name: pooled_ratio(errors.mean(0), np.ones(errors.shape[1]))
            for name, errors in self.elsewhere.items()
        }

    def encoder_gap(self, scenes: str) -> Interval:
        """1 - error in episodes that only the decoder has not learnt / error in other scenes: what
        the frozen part saves where it has seen the episode. By episode of both (delta method,
        Student's t)."""
        out, new = self.out_error, self.elsewhere[scenes].mean(0)
        ratio = out.mean() / new.mean()
        relative = [(x.std(ddof=1) / x.mean()) ** 2 / len(x) for x in (out, new)]
        reach = stats.t.ppf(0.975, min(len(out), len(new)) - 1) * ratio * np.sqrt(sum(relative))
        return Interval(*(np.asarray(1 - x) for x in (ratio, ratio + reach, ratio - reach)))

    @property
    def standard_errors(self) -> tuple[float, float]:
        """Of `mean` and of `share`, as far as they depend on which decoders were trained: jackknife
        over decoders. More decoders make it smaller; more episodes the intervals."""
        n = self.n_decoders
        left = []
        for one in range(n):
            kept = np.arange(n) != one
            out = _mean_where(self.errors[kept], ~self.learnt[kept])
            mem = out - _mean_where(self.errors[kept], self.learnt[kept])
            known = np.isfinite(mem)
            left.append((mem[known].mean(), mem[known].sum() / out[known].sum()))
        spread = np.array(left).var(0)
        mean, share = np.sqrt((n - 1) * spread)
        return float(mean), float(share)

    @property
    def reliability(self) -> float:
        """Rank correlation of mem_i between halves of the decoders, carried over to all of them
        (Spearman and Brown): 1 if the ranking of episodes would come out the same again, 0 if it is
        noise. NaN with too few decoders."""
        halves = []
        for start in (0, 1):
            errors, learnt = self.errors[start::2], self.learnt[start::2]
            halves.append(_mean_where(errors, ~learnt) - _mean_where(errors, learnt))
        known = np.isfinite(halves).all(0)
        if known.sum() < 5:
            return float("nan")
        rho = float(stats.spearmanr(*(half[known] for half in halves)).statistic)
        return 2 * rho / (1 + rho) if rho > 0 else rho

    def frame(self) -> "pd.DataFrame":
        """One row per episode, what is learnt by heart most first; `q` is Benjamini-Hochberg over
        Welch's tests that an episode is not memorised, decoders being the units."""
        import pandas as pd

        adjusted = self.errors - self._levels[:, None]
        low, high, p = [], [], []
        for column, known in zip(adjusted.T, self.learnt.T, strict=True):
            test = stats.ttest_ind(
                column[~known], column[known], equal_var=False, alternative="greater"
            )
            both = stats.ttest_ind(column[~known], column[known], equal_var=False)
            bounds = both.confidence_interval()
            low.append(bounds.low)
            high.append(bounds.high)
            p.append(test.pvalue)
        table = pd.DataFrame(
            {
                "episode": self.indices,
                "mem": self.by_episode,
                "low": low,
                "high": high,
                "error_in": self.in_error,
                "error_out": self.out_error,
                "share": self.by_episode / self.out_error,
                "q": false_discovery(np.array(p)),
            }
        )
        return table.sort_values("mem", ascending=False, ignore_index=True)

    @property
    def _levels(self) -> Float[np.ndarray, " decoder"]:
        """How much worse a decoder is than others on what it had learnt: its luck, which would
        otherwise count as noise of every episode."""
        off = np.where(self.learnt, self.errors - self.in_error, np.nan)
        return np.nanmean(off, 1)


def _mean_where(
    errors: Float[np.ndarray, "decoder episode"], chosen: Bool[np.ndarray, "decoder episode"]
) -> Float[np.ndarray, " episode"]:
    """NaN for an episode that no decoder is chosen for."""
    counts = chosen.sum(0)
    sums = np.where(chosen, errors, 0.0).sum(0)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
