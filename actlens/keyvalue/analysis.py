"""Keys and values of one MLP over a dataset, side by side: the tables of `experiments.keyvalue`."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from actlens.keyvalue.composition import composition_numbers, stream_numbers
from actlens.keyvalue.entries import Entries
from actlens.keyvalue.identity import EpisodeIdentity, episode_identity
from actlens.keyvalue.keys import Keys
from actlens.keyvalue.layers import LayerNumber, activity_numbers, agreement_numbers
from actlens.keyvalue.patterns import Patterns, find_patterns
from actlens.keyvalue.profiles import scene_weights
from actlens.keyvalue.reading import Reading, read_memories
from actlens.keyvalue.traits import demonstrated
from actlens.keyvalue.values import ClosedFormValues, Values, read_values
from actlens.model.act import HookedACT
from actlens.scene import Scene, episode_numbers

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Triggered:
    """What one set of keys finds: triggers, the patterns among them, their episodes."""

    reading: Reading
    patterns: Patterns
    identity: EpisodeIdentity

    @property
    def sharpest(self) -> Float[np.ndarray, " neuron"]:
        """Score of each neuron's sharpest crowd, per trigger; NaN where too few triggers."""
        tested = self.patterns.n_triggers > 0
        best = np.max(self.patterns.score, axis=1)
        return np.where(tested, best / np.maximum(self.patterns.n_triggers, 1), np.nan)

    def summary(self) -> dict[str, float]:
        """Shares of the neurons that could be tested."""
        tested, known = self.patterns.n_triggers > 0, self.identity.tested
        patterns = self.patterns.significant()[tested]
        mean = lambda values: float(np.mean(values)) if len(values) else np.nan
        return {
            "neurons": len(tested),
            "tested": int(tested.sum()),
            "with_pattern": mean(patterns.any(1)),
            "patterns_per_neuron": mean(patterns.sum(1)),
            "coverage": mean(self.patterns.coverage()[tested]),
            "tested_for_episode": int(known.sum()),
            "distinct_episodes": mean(self.identity.distinct[known]),
            "in_fullest_episode": mean(self.identity.largest[known]),
            "concentrated": int(self.identity.concentrated().sum()),
            "cells": int(self.identity.cells().sum()),
        }


@dataclass(frozen=True)
class KeyValueAnalysis:
    """An MLP read as a memory. `shuffled` is the control: other keys, the same inputs."""

    own: Triggered
    shuffled: Triggered
    values: Values
    layer: tuple[LayerNumber, ...]
    value_scenes: tuple[Scene, ...]
    """Over which the values were read."""

    @property
    def sharper(self) -> Float[np.ndarray, " neuron"]:
        """Share of shuffled keys whose sharpest crowd is less sharp than the neuron's."""
        chance = np.sort(self.shuffled.sharpest[np.isfinite(self.shuffled.sharpest)])
        found = self.own.sharpest
        rank = np.searchsorted(chance, found, side="left") / max(1, len(chance))
        return np.where(np.isfinite(found), rank, np.nan)

    def neurons(self) -> "pd.DataFrame":
        """One row per neuron: when it fires, what its triggers share, what it does."""
        import pandas as pd

        reading, patterns, identity = self.own.reading, self.own.patterns, self.own.identity
        activity, best = reading.activity, patterns.score.argmax(1)
        rows = np.arange(len(best))
        crowded = patterns.score[rows, best] > 0
        pick = lambda values: np.where(crowded, values[rows, best], np.nan)
        lift = patterns.n / np.maximum(patterns.n_triggers, 1)[:, None] / patterns.share
        table = pd.DataFrame(
            {
                "active": activity.active,
                "mean": activity.mean,
                "max": activity.maximum,
                "varies_with_episode": activity.episode_share,
                "varies_with_frame": activity.frame_share,
                "varies_with_position": activity.position_share,
                "varies_with_time": activity.time_share,
                "triggers": patterns.n_triggers,
                "patterns": patterns.significant().sum(1),
                "coverage": patterns.coverage(),
                "sharpest_trait": np.where(crowded, np.array(patterns.traits)[best], ""),
                "low_or_x": np.where(crowded, patterns.region[rows, best, 0], np.nan),
                "high_or_y": np.where(crowded, patterns.region[rows, best, 1], np.nan),
                "radius": np.where(crowded, patterns.region[rows, best, 2], np.nan),
                "in_crowd": np.where(crowded, patterns.n[rows, best], 0),
                "lift": pick(lift),
                "p": pick(patterns.p),
                "q": pick(patterns.q),
                "sharper_than_shuffled": self.sharper,
                "episodes_of_triggers": identity.distinct,
                "in_fullest_episode": identity.largest,
                "fullest_episode": [self._episode(i) for i in identity.episode],
                "episode_q": identity.q,
                "margin_of_episode": identity.margin,
                "concentrated": identity.concentrated(),
                "cell": identity.cells(),
            }
        ).rename_axis("neuron")
        return table.join(self.values.frame()).reset_index()

    def triggers(self) -> "pd.DataFrame":
        """One row per neuron and trigger, at most one an episode, strongest first."""
        import pandas as pd

        reading = self.own.reading
        found = reading.by_episode
        neuron, rank = np.nonzero(np.isfinite(found.coefficient))
        at = (neuron, rank)
        names = [reading.episodes[i] for i in found.episode[at]]
        table = pd.DataFrame(
            {
                "neuron": neuron,
                "rank": rank,
                "source": [source for source, _ in names],
                "episode": [episode for _, episode in names],
                "at_frame": found.frame[at],
                "at_position": found.position[at],
                "coefficient": found.coefficient[at],
            }
        )
        traits = pd.DataFrame(found.traits[at], columns=list(reading.trait_names))
        return pd.concat([table, traits], axis=1)

    def layer_frame(self) -> "pd.DataFrame":
        """One row per figure of the layer."""
        import pandas as pd

        return pd.DataFrame([asdict(number) for number in self.layer])

    def summary(self) -> "pd.DataFrame":
        """What the keys find, and what shuffled ones do: one column each."""
        import pandas as pd

        columns = {"own": self.own.summary(), "shuffled": self.shuffled.summary()}
        return pd.DataFrame(columns).rename_axis("figure")

    def _episode(self, number: int) -> str:
        return "" if number < 0 else str(self.own.reading.episodes[number][1])


def find_triggers(
    model: HookedACT,
    block: str,
    entries: Iterable[Entries],
    *,
    top: int = 25,
    draws: int = 1999,
    seed: int = 0,
) -> tuple[Triggered, Triggered]:
    """The triggers of one MLP's keys and of shuffled ones, and what they share.

    Args:
        block: `decoder.0`, `encoder.2`, ….
        entries: `run_entries` of a dataset, or `stored_entries`, of that block; read once.
        top: triggers of every neuron.
        draws: of permuted triggers.
        seed: of shuffled keys and permutations.

    Raises:
        HookNameError: if the policy has no such block.
        SceneError: if there is no entry, or an episode comes in pieces.
    """
    keys = Keys.of(model, block)
    own, shuffled = (
        Triggered(
            reading,
            find_patterns(reading, draws=draws, seed=seed),
            episode_identity(reading, seed=seed),
        )
        for reading in read_memories([keys, keys.shuffled(seed)], entries, top=top, seed=seed)
    )
    return own, shuffled


def analyse_mlp(
    model: HookedACT,
    own: Triggered,
    shuffled: Triggered,
    scenes: Sequence[Scene],
    *,
    seed: int = 0,
) -> KeyValueAnalysis:
    """Put values beside keys, and count over the layer.

    Args:
        own: of `find_triggers`, as `shuffled`.
        scenes: over which values are read, one of each of some episodes; positions behind an
            episode's end do not count.
        seed: of permutations and bootstraps.

    Raises:
        SceneError: if there is no scene, or one does not fit the policy.
    """
    runs, values = read_values(model, own.reading.site.block, scenes)
    episodes = episode_numbers(scenes)
    layer = activity_numbers(own.reading, shuffled.reading, seed=seed)
    if isinstance(values, ClosedFormValues):
        demonstrations = {demonstrated(joint) for joint in model.config.joints}
        if demonstrations <= set(own.reading.trait_names):
            layer += agreement_numbers(
                model, own.reading, own.patterns, values.directions, seed=seed
            )
        weights = scene_weights(model.config, scenes)
        layer += composition_numbers(values.contributions, weights, episodes, seed=seed)
    layer += stream_numbers(model, scenes, runs, episodes, seed=seed)
    return KeyValueAnalysis(own, shuffled, values, tuple(layer), tuple(scenes))
