"""Attention over many scenes: on how many tokens, on which, and whether on others in each scene."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from actlens.attention.columns import named, put
from actlens.attention.concentration import MEASURES, concentration, uniform
from actlens.attention.groups import TokenGroup
from actlens.attention.options import CLAIMED_TOKENS, claimed_share
from actlens.attention.overlap import Overlap, overlap
from actlens.attention.reading import SceneAttention
from actlens.statistics import Interval, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""Position of the rows that are means over all chunk positions that count."""
KINDS = ("attention", "norm", "rollout")
"""Raw, norm-based (Kobayashi et al. 2020), and rolled out (Abnar and Zuidema 2020)."""
EACH, MEAN = "each", "mean"
"""Heads of the rows that are means over heads of a measure, and of the measure of the mean head."""


@dataclass(frozen=True)
class AttentionSurvey:
    """What the decoder's queries look at, over scenes of many episodes.

    Intervals are 95 %, by bootstrap over episodes; missing below five.
    """

    scenes: tuple[SceneAttention, ...]
    groups: tuple[TokenGroup, ...]
    token_names: tuple[str, ...]
    seed: int = 0

    @property
    def n_tokens(self) -> int:
        """Of the encoder."""
        return len(self.token_names)

    @cached_property
    def episodes(self) -> Int[np.ndarray, " scene"]:
        """Which scenes are of one episode."""
        names = {name: i for i, name in enumerate(dict.fromkeys(s.episode for s in self.scenes))}
        return np.array([names[scene.episode] for scene in self.scenes])

    @cached_property
    def counted(self) -> Float[np.ndarray, "scene query"]:
        """What each chunk position weighs in each scene."""
        return np.stack([scene.counted for scene in self.scenes])

    @cached_property
    def averaged(self) -> Float[np.ndarray, "scene token"]:
        """Attention averaged over heads, decoder blocks and the chunk positions that count."""
        return np.stack([scene.averaged(scene.attention) for scene in self.scenes])

    def mean(
        self,
        values: Float[np.ndarray, "*rows scene"],
        weights: Float[np.ndarray, "*rows scene"] | None = None,
    ) -> Interval:
        """The mean over scenes with its interval by episode."""
        given = np.ones_like(values) if weights is None else np.broadcast_to(weights, values.shape)
        filled = np.where(given > 0, values, 0.0)
        return pooled_ratio(filled * given, given, clusters=self.episodes, seed=self.seed)

    # ── on how many ──────────────────────────────────────────────────────────────────────────

    def measure(self, name: str, *, head: str = MEAN, null: bool = False) -> Interval:
        """One measure, averaged over decoder blocks and the chunk positions that count.

        Args:
            name: of `MEASURES`.
            head: `MEAN`, the measure of the mean over heads; `EACH`, the mean over single heads.
            null: under random logits of the same spread.
        """
        chosen = slice(-1, None) if head == MEAN else slice(0, -1)
        at = MEASURES.index(name)
        found = [(s.null if null else s.concentration)[:, chosen, :, at] for s in self.scenes]
        by_query = np.stack(found).mean((1, 2))
        return self.mean((by_query * self.counted).sum(1) / self.counted.sum(1))

    def concentration(self) -> "pd.DataFrame":
        """One row per decoder block, head, chunk position and measure.

        Columns: `layer`, `head` (a number, `each`: the mean over heads, `mean`: of the mean head),
        `position` (a number or `all`), `measure` (`actlens.attention.concentration`), `value` with
        `low` and `high`, `null` (random logits of the same spread), `uniform` (equal weights).
        """
        import pandas as pd

        found = self._with_rows([scene.concentration for scene in self.scenes])
        null = self._with_rows([scene.null for scene in self.scenes])
        weights = self._counts[:, None]
        value, chance = self.mean(found, weights), self.mean(null, weights).estimate
        layers, heads, positions, _ = value.estimate.shape
        names = (
            range(layers),
            [*map(str, range(heads - 2)), MEAN, EACH],
            [*map(str, range(positions - 1)), ALL],
            MEASURES,
        )
        index = pd.MultiIndex.from_product(names, names=["layer", "head", "position", "measure"])
        table = index.to_frame(index=False)
        table["value"], table["low"], table["high"] = (
            x.ravel() for x in (value.estimate, value.low, value.high)
        )
        table["null"] = chance.ravel()
        table["uniform"] = np.broadcast_to(uniform(self.n_tokens), value.estimate.shape).ravel()
        return table

    def concentration_by_weight(self) -> "pd.DataFrame":
        """One row per kind of weight (`norm`, `rollout`), chunk position and measure.

        Columns: `weight`, `position`, `measure`, `value` with `low` and `high`, `uniform`. Norms
        are means over decoder blocks; the weights of `concentration` are attention alone.
        """
        import pandas as pd

        tables = []
        for kind in KINDS[1:]:
            each = [concentration(torch.from_numpy(getattr(s, kind))) for s in self.scenes]
            values = torch.stack(each, -1).numpy()
            weights = self.counted.T[:, None]
            whole = (values * weights).sum(0, keepdims=True) / weights.sum(0)
            found = self.mean(np.concatenate([values, whole]), self._counts[:, None])
            names = ([kind], [*map(str, range(len(values))), ALL], MEASURES)
            index = pd.MultiIndex.from_product(names, names=["weight", "position", "measure"])
            table = index.to_frame(index=False)
            put(table, "value", found)
            table["uniform"] = np.tile(uniform(self.n_tokens), len(values) + 1)
            tables.append(table.rename(columns={"value_low": "low", "value_high": "high"}))
        return pd.concat(tables, ignore_index=True)

    def _with_rows(
        self, scenes: Sequence[Float[np.ndarray, "layer head_and_mean query measure"]]
    ) -> Float[np.ndarray, "layer row position measure scene"]:
        """With the mean over heads behind the heads, and that over positions behind these."""
        values = np.stack(scenes, -1)
        values = np.concatenate([values, values[:, :-1].mean(1, keepdims=True)], 1)
        weights = self.counted.T[:, None]
        whole = (values * weights).sum(2, keepdims=True) / weights.sum(0)
        return np.concatenate([values, whole], 2)

    @property
    def _counts(self) -> Float[np.ndarray, "position scene"]:
        """Which scenes count at each position; all of them in the mean over positions."""
        counts = (self.counted > 0).astype(float).T
        return np.concatenate([counts, np.ones((1, len(self.scenes)))])

    # ── on which ─────────────────────────────────────────────────────────────────────────────

    def by_position(self, kind: str) -> Float[np.ndarray, "position scene token"]:
        """Tokens' weights at every chunk position, and last their mean over positions.

        Args:
            kind: `attention`, `norm` or `rollout`.
        """
        each = [getattr(scene, kind) for scene in self.scenes]
        whole = [scene.averaged(x) for scene, x in zip(self.scenes, each, strict=True)]
        return np.concatenate([np.stack(each, 1), np.stack(whole)[None]])

    def shares(self) -> "pd.DataFrame":
        """One row per group of tokens and chunk position.

        Columns: `group`, `position` (a number or `all`), `tokens`, `uniform` (their share of all
        tokens), `attention`, `norm` and `rollout`: the shares that they get, each with `_low` and
        `_high`; `chance_low` and `chance_high`: between which 95 % of sets of as many random tokens
        get (identities permuted, alike in all scenes). Of single tokens also `rank` (1: the most
        attended), `among_20` (in which share of scenes it is among the 20 most attended) and
        `among_claimed` (among the claim's 3.3 %), each with `_low` and `_high`.
        """
        import pandas as pd

        weights = {kind: self.by_position(kind) for kind in KINDS}
        positions = [*map(str, range(len(weights["attention"]) - 1)), ALL]
        tables = []
        for group in self.groups:
            table = pd.DataFrame({"group": group.name, "position": positions})
            table["tokens"] = len(group.tokens)
            table["uniform"] = len(group.tokens) / self.n_tokens
            for kind, values in weights.items():
                put(table, kind, self.mean(values[..., list(group.tokens)].sum(-1), self._counts))
            table["chance_low"], table["chance_high"] = self._chance(weights["attention"], group)
            if len(group.tokens) == 1:
                for name, values in self._ranks(weights["attention"], group.tokens[0]).items():
                    put(table, name, self.mean(values, self._counts))
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def shares_by_moment(self) -> "pd.DataFrame":
        """`shares` over the chunk positions that count, at each moment of the task (`moment`)."""
        import pandas as pd

        tables = []
        for moment in sorted({scene.moment for scene in self.scenes}):
            there = replace(self, scenes=tuple(s for s in self.scenes if s.moment == moment))
            table = there.shares()
            tables.append(table[table.position == ALL].assign(moment=moment))
        return pd.concat(tables, ignore_index=True)

    def _chance(
        self,
        weights: Float[np.ndarray, "position scene token"],
        group: TokenGroup,
        draws: int = 999,
    ) -> Float[np.ndarray, "2 position"]:
        generator = np.random.default_rng(self.seed)
        order = generator.permuted(np.tile(np.arange(self.n_tokens), (draws, 1)), axis=1)
        drawn = np.zeros((draws, self.n_tokens))
        np.put_along_axis(drawn, order[:, : len(group.tokens)], 1.0, axis=1)
        return np.quantile(weights.mean(1) @ drawn.T, (0.025, 0.975), axis=1)

    def _ranks(
        self, weights: Float[np.ndarray, "position scene token"], token: int
    ) -> dict[str, Float[np.ndarray, "position scene"]]:
        rank = 1.0 + (weights > weights[..., [token]]).sum(-1)
        limits = {"among_20": CLAIMED_TOKENS[1], "among_claimed": claimed_share(self.n_tokens)}
        return {"rank": rank} | {name: (rank <= k) * 1.0 for name, k in limits.items()}

    # ── on others in each scene? ─────────────────────────────────────────────────────────────

    @property
    def pixels(self) -> tuple[int, ...]:
        """The tokens of all cameras."""
        return tuple(i for g in self.groups if g.is_part and g.is_camera for i in g.tokens)

    def overlap_of(self, k: int, tokens: Sequence[int] | None = None) -> Overlap:
        """How alike the sets of the k most attended tokens are (mean over positions and heads).

        Args:
            tokens: among which; all if not given.
        """
        weights = self.averaged if tokens is None else self.averaged[:, list(tokens)]
        moments = np.array([scene.moment for scene in self.scenes])
        return overlap(weights, self.episodes, moments, k, seed=self.seed)

    def overlaps(self) -> "pd.DataFrame":
        """One row per size of the set and way to pair scenes: the Jaccard overlap.

        Columns: `among` (`all tokens`, or `pixels`, because state and latent may be in every set),
        `k`, `scenes` (`other episode, same moment`, …), `jaccard` with `_low` and
        `_high`, `chance` (identities permuted).
        """
        import pandas as pd

        rows = []
        sizes = {CLAIMED_TOKENS[1], claimed_share(self.n_tokens)}
        among = (("all tokens", tuple(range(self.n_tokens))), ("pixels", self.pixels))
        for (name, tokens), k in product(among, sorted(sizes)):
            if k >= len(tokens):
                continue
            found = self.overlap_of(k, tokens)
            for scenes, interval in (
                ("other episode, same moment", found.same_moment),
                ("other episode, other moment", found.other_moment),
                ("same episode, other moment", found.same_episode),
            ):
                row = {"among": name, "k": k, "scenes": scenes} | named("jaccard", interval)
                rows.append(row | {"chance": found.chance})
        return pd.DataFrame(rows)
