"""Keys in reduced precision, with a bound on what the reduction may have changed.

For a query q and keys k, both relative to a centre and scaled alike, the score is
s = q.k - |k|^2 / 2 = (|q|^2 - |q - k|^2) / 2: the nearest key has the largest. Products of rounded
q and k give s' with |s - s'| <= |q| |dk| + |dq| |k'| + rounding of sums (Higham 2002, section 3.1),
where |dk| and |dq|, the lengths of what rounding took away, are measured and not estimated.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.retrieval.keys import Keys, RetrievalError, read, rows_at_once, size, spans
from actlens.retrieval.rounding import (
    COLUMNS,
    NORM_PARTS,
    UNIT,
    centre_and_scale,
    product,
    reduce_block,
    true_float32,
)

_SUM_UNIT = 2.0**-24
"""Products are summed in float32."""
_DENORMAL = 2.0**-100
"""More than numbers too small for float32 can add up to, where keys have lengths up to 1."""
_SLACK = 2.0**-40
"""More than float64 can be wrong in a squared distance, relative to the squares of both lengths."""
_LONGEST_QUERY = 2.0**50
"""Times the longest key; for longer ones float32 gives no bound, and every key is examined."""


@dataclass(frozen=True)
class _Lengths:
    """What the bound needs to know of keys: the largest of each group."""

    rounding: Float[Tensor, " group"]
    """|dk|."""
    kept: Float[Tensor, " group"]
    """|k'|."""
    half_square: Float[Tensor, " group"]
    """|k|^2 / 2."""
    norm_rounding: Float[Tensor, " group"]
    """Error of the stored |k|^2 / 2."""


@dataclass(frozen=True)
class _Query:
    """Queries as they meet the keys."""

    rounded: Float[Tensor, "query d_norm"]
    lengths: Float[Tensor, "query 3"]
    """|q|, |dq|, 1."""


@dataclass(frozen=True)
class ReducedKeys:
    """Keys in groups of neighbouring rows, in reduced precision; built once, searched often.

    In memory, the members of a block's groups are as far apart as the block has groups: the largest
    score of each group is then a maximum over the first axis of a view, at vector speed.
    """

    n: int
    d: int
    group: int
    """Keys of a group; the last may have fewer. Group g has the keys from g * group on."""
    step: int
    """Keys of a block; the last may have fewer."""
    centre: Float[np.ndarray, " d"]
    scale: float
    """A power of two that brings the longest key below 1."""
    values: Float[Tensor, "row d_norm"]
    """Rounded keys and the parts of -|k|^2 / 2."""
    lengths: _Lengths

    @classmethod
    def of(cls, keys: Keys, dtype: torch.dtype, *, group: int | None = None) -> "ReducedKeys":
        """Read the keys twice, a block at a time; their reduced copy stays in memory.

        Args:
            group: how many keys share a bound; 1 to 16 by their number if not given.

        Raises:
            RetrievalError: if a key is not finite, or near the largest numbers of float64.
        """
        n, d = size(keys)
        if dtype not in UNIT:
            raise RetrievalError(f"Keys are reduced to bfloat16 or float32, not to {dtype}.")
        centre, scale = centre_and_scale(keys, n, d)
        group = group or min(16, 2 ** int(np.log2(max(1, n // 2**14))))
        step = rows_at_once(d, multiple_of=group)
        width = d + NORM_PARTS[dtype]
        values = torch.zeros(-(-n // group) * group, width + -width % 4, dtype=dtype)
        lengths = []
        for rows in spans(n, step):
            block = (read(keys, rows) - centre) * scale
            lengths.append(reduce_block(block, group, values[rows.start : rows.start + step]))
        joined = (torch.cat(parts) for parts in zip(*lengths, strict=True))
        return cls(n, d, group, step, centre, scale, values, _Lengths(*joined))

    @property
    def dtype(self) -> torch.dtype:
        """Of the reduced copy."""
        return self.values.dtype

    @property
    def n_groups(self) -> int:
        """Of all blocks."""
        return len(self.values) // self.group

    def best_scores(self, queries: Float[np.ndarray, "query d"]) -> Float[Tensor, "query group"]:
        """An upper bound on the score of every key of each group, float32.

        Args:
            queries: relative to the centre and scaled, float64.
        """
        usable = np.linalg.norm(queries, axis=1) <= _LONGEST_QUERY
        query = self._rounded(np.where(usable[:, None], queries, 0.0))
        bounds = torch.empty(len(queries), self.n_groups)
        with true_float32():
            # As few operations a block as can be: on a busy machine threads wait for one another
            # at each.
            for start in range(0, len(self.values), self.step):
                block = self.values[start : start + self.step]
                here = slice(start // self.group, (start + len(block)) // self.group)
                scores = product(query.rounded, block).view(len(queries), self.group, -1)
                bounds[:, here] = scores.amax(1)
            self._add_what_may_be_missing(bounds, query, self._errors, UNIT[self.dtype])
        bounds[torch.from_numpy(~usable)] = torch.inf
        return bounds

    def key_scores(
        self, query: Float[np.ndarray, " d"], groups: Int[np.ndarray, " group"]
    ) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " row"]]:
        """The keys of some groups, in no order, and an upper bound on each one's score."""
        first = groups * self.group // self.step * self.step
        in_block = np.minimum(self.step, len(self.values) - first) // self.group
        member = np.arange(self.group)[:, None]
        places = first + member * in_block + (groups - first // self.group)
        rows = (groups * self.group + member).reshape(-1)
        asked = self._rounded(query[None])
        # Not rounded to the reduced dtype again, so that these bounds are the closer ones.
        values = self.values.index_select(0, torch.from_numpy(places.reshape(-1))).float()
        with true_float32():
            scores = product(asked.rounded.float(), values)
            errors = self._errors[:, torch.from_numpy(np.tile(groups, self.group))]
            self._add_what_may_be_missing(scores, asked, errors, _SUM_UNIT)
        return rows[rows < self.n], scores[0].numpy()[rows < self.n]

    def _rounded(self, queries: Float[np.ndarray, "query d"]) -> _Query:
        rounded = torch.from_numpy(queries).to(self.dtype)
        ones = torch.zeros(len(queries), self.values.shape[1] - self.d, dtype=self.dtype)
        ones[:, : NORM_PARTS[self.dtype]] = 1.0
        lost = queries - rounded.double().numpy()
        columns = (np.linalg.norm(queries, axis=1), np.linalg.norm(lost, axis=1))
        lengths = np.stack([*columns, np.ones(len(queries))], 1)
        return _Query(torch.cat([rounded, ones], 1), torch.from_numpy(lengths).float())

    @cached_property
    def _parts(self) -> int:
        """Products that a score is the sum of."""
        return -(-self.values.shape[1] // COLUMNS)

    @cached_property
    def _errors(self) -> Float[Tensor, "3 group"]:
        """What a query's lengths are multiplied by, for what may be missing from a score."""
        keys = self.lengths
        # Each product and each sum may be rounded; two roundings a term cover both.
        terms = (2 * (min(self.d, COLUMNS) + 4) + self._parts) * _SUM_UNIT
        summed = terms / (1 - terms)
        # A score of several parts was rounded in each; their sizes add up to at most this.
        spoken = _relative(UNIT[self.dtype]) if self._parts > 1 else 0.0
        of_length = keys.rounding + (1.01 * summed + spoken) * keys.kept
        of_lost = (1 + summed + spoken) * keys.kept
        of_one = (1.02 * summed + 1.01 * spoken) * keys.half_square + keys.norm_rounding
        errors = torch.stack([of_length, of_lost, of_one]) + _DENORMAL
        return (1 + 2.0**-18) * errors

    def _add_what_may_be_missing(
        self,
        scores: Float[Tensor, "query row"],
        query: _Query,
        errors: Float[Tensor, "3 row"],
        unit: float,
    ) -> None:
        """Make scores upper bounds, in place.

        Args:
            unit: to which the scores were rounded.
        """
        relative = _relative(unit if self._parts == 1 else 0.0)
        scores.add_(scores.abs(), alpha=relative).addmm_(query.lengths, errors)

    def threshold(
        self,
        queries: Float[np.ndarray, "query d"],
        squared: Float[np.ndarray, " query"],
    ) -> Float[np.ndarray, " query"]:
        """The score below which no key is within a squared distance (scaled) of a query."""
        own = np.square(queries).sum(1)
        return (own - squared) / 2 - _SLACK * (np.sqrt(own) + 1) ** 2


def _relative(unit: float) -> float:
    """What a rounded score may lack, as a share of it, with room for sums in float32."""
    return unit / (1 - unit) + 2.0**-20


def scaled(reduced: ReducedKeys, queries: Float[np.ndarray, "query d"]) -> np.ndarray:
    """Queries as `ReducedKeys` takes them."""
    return (queries.astype(np.float64) - reduced.centre) * reduced.scale


def group_labels(
    labels: Int[np.ndarray, " key"], group: int, absent: int
) -> Int[np.ndarray, " group"]:
    """The label that all keys of a group share; `absent` where they differ."""
    starts = np.arange(0, len(labels), group)
    low, high = (f.reduceat(labels, starts) for f in (np.minimum, np.maximum))
    return np.where(low == high, low, absent)
