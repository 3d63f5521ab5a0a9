"""What Geva et al. (2020) counted over a layer's memories, for actions; each beside its null.

A language model's layer votes for a token; a policy's adds to a vector of joints. So agreement is
an angle, composition a vector that no single memory gives, and every figure stands beside what
chance gives, because in six dimensions large cosines are cheap.
"""

from dataclasses import dataclass

import numpy as np
import torch

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.keyvalue.directions import Directions
from actlens.keyvalue.patterns import Patterns
from actlens.keyvalue.reading import Reading
from actlens.keyvalue.traits import demonstrated
from actlens.model.act import HookedACT
from actlens.statistics import pooled_ratio


@dataclass(frozen=True)
class LayerNumber:
    """One figure of a layer, with a 95 % interval over episodes where it has one, and its null."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    null: float
    null_is: str
    """What was permuted."""
    p: float = np.nan
    """Share of permutations that reach the value, where many were made."""
    anchor: str = ""
    """What Geva et al. found in a language model."""


def activity_numbers(own: Reading, shuffled: Reading, *, seed: int = 0) -> list[LayerNumber]:
    """Active memories at an entry, and dead ones.

    The null are shuffled keys with the same norms and thresholds.
    """
    counted = own.activity.active_per_entry
    active = pooled_ratio(counted[None], np.ones(len(counted))[None], seed=seed)
    return [
        LayerNumber(
            "active memories at an entry",
            "share of neurons",
            float(active.estimate[0]),
            float(active.low[0]),
            float(active.high[0]),
            float(shuffled.activity.active_per_entry.mean()),
            "shuffled keys",
            anchor="10-50 %",
        ),
        LayerNumber(
            "memories that never fire",
            "share of neurons",
            float(own.activity.dead.mean()),
            np.nan,
            np.nan,
            float(shuffled.activity.dead.mean()),
            "shuffled keys",
        ),
    ]


def agreement_numbers(
    model: HookedACT,
    reading: Reading,
    patterns: Patterns,
    directions: Directions,
    *,
    draws: int = 999,
    seed: int = 0,
) -> list[LayerNumber]:
    """Whether a value points where its key's triggers go (Geva et al. 2020, section 4).

    The cosine of the scale-free direction with the mean demonstrated action of the triggers, from
    the mean over all entries. The null gives each value another neuron's triggers. Nothing where
    no neuron fires in enough episodes.

    Raises:
        SceneError: if the scenes came without demonstrated actions.
    """
    joints = model.config.joints
    try:
        at = [reading.trait_names.index(demonstrated(joint)) for joint in joints]
    except ValueError:
        raise SceneError(
            "The scenes have no demonstrated actions to compare values with."
        ) from None
    normalized = lambda traits: (
        model.normalizer.normalize(ACTION_KEY, torch.from_numpy(traits[..., at])).double().numpy()
    )
    chosen = np.flatnonzero(patterns.n_triggers)
    if not len(chosen):
        return []
    top = reading.by_episode.traits.shape[1]
    used = np.arange(top) < patterns.n_triggers[chosen, None]
    triggers = np.where(used[..., None], normalized(reading.by_episode.traits[chosen]), np.nan)
    towards = np.nanmean(triggers, axis=1) - np.nanmean(normalized(reading.background.traits), 0)
    values = directions.normalized.cpu().numpy()[chosen]
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    values, towards = unit(values), unit(towards)
    cosine = (values * towards).sum(1)
    rng = np.random.default_rng(seed)
    by_chance = [(values[rng.permutation(len(values))] * towards).sum(1) for _ in range(draws)]
    statistics = {
        "a value points where its triggers go": ("mean cosine", lambda c: c.mean(-1)),
        "values within 60 degrees of their triggers": ("share", lambda c: (c > 0.5).mean(-1)),
    }
    numbers = []
    for name, (what, statistic) in statistics.items():
        value, chance = float(statistic(cosine)), statistic(np.stack(by_chance))
        p = (1 + int((chance >= value - 1e-12).sum())) / (1 + draws)
        anchor = "3.5 %" if what == "share" else ""
        numbers.append(
            LayerNumber(
                name, what, value, np.nan, np.nan, float(chance.mean()),
                "values among neurons", p, anchor,
            )
        )  # fmt: skip
    return numbers
