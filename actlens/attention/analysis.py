"""The attention of a policy over scenes of many episodes, described and tested by interventions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from actlens.attention.absorption import interchange
from actlens.attention.claims import claims_of
from actlens.attention.effects import OTHER, SAME, AttentionEffects, SceneEffects
from actlens.attention.groups import TokenGroup, token_groups
from actlens.attention.masking import leave_one_out, over_positions, sufficiency
from actlens.attention.options import AttentionOptions
from actlens.attention.reading import SceneAttention, read_attention
from actlens.attention.survey import AttentionSurvey
from actlens.claims import Claim
from actlens.errors import SceneError
from actlens.interventions import SceneRun, run_scene
from actlens.metrics import position_weights
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTables
from actlens.scene import Scene
from actlens.tokens import TokenMap

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AttentionAnalysis(DrawnAsTables):
    """What a policy attends to, what of it matters, and what that says about the claims."""

    survey: AttentionSurvey
    effects: AttentionEffects
    tokens: TokenMap
    shown: Scene
    """The first scene with interventions, for pictures."""

    def claims(self) -> tuple[Claim, ...]:
        """The claims with their figures and verdicts."""
        return claims_of(self.survey, self.effects)

    def frame(self) -> "pd.DataFrame":
        """One row per claim and reading; columns are `Claim`'s fields."""
        import pandas as pd

        rows = [vars(claim) | {"verdict": claim.verdict.value} for claim in self.claims()]
        return pd.DataFrame(rows)

    def token_frame(self) -> "pd.DataFrame":
        """One row per token, over all scenes and the chunk positions that count.

        Columns: `TokenMap.frame`'s, `attention`, `norm` and `rollout` (shares), `effect` (of
        leaving it out of cross-attention, dataset units, over the scenes with interventions).
        """
        table, survey = self.tokens.frame(), self.survey
        for kind in ("attention", "norm", "rollout"):
            table[kind] = np.mean([s.averaged(getattr(s, kind)) for s in survey.scenes], axis=0)
        table["effect"] = self.effects.importance()
        return table

    def frames(self) -> dict[str, "pd.DataFrame"]:
        """All tables by name."""
        return {
            "claims": self.frame(),
            "concentration": self.survey.concentration(),
            "concentration_by_weight": self.survey.concentration_by_weight(),
            "shares": self.survey.shares(),
            "shares_by_moment": self.survey.shares_by_moment(),
            "overlap": self.survey.overlaps(),
            "sufficiency": self.effects.sufficiency(),
            "rank_correlation": self.effects.rank_correlations(),
            "absorption": self.effects.absorptions(),
            "carriers": self.effects.carriers(),
            "tokens": self.token_frame(),
        }


@torch.no_grad()
def analyse_attention(
    model: HookedACT,
    episodes: Iterable[Sequence[Scene]],
    *,
    options: AttentionOptions | None = None,
    progress: Callable[[int], None] = lambda n_episodes: None,
) -> AttentionAnalysis:
    """Read the attention of every scene, and intervene on one scene of every episode.

    Episodes are taken two by two, and tokens are swapped between the two: at the same moment (what
    differs is where things are) and at another one (how far the task has got differs too). The
    moment changes from pair to pair.

    Args:
        episodes: the scenes of each episode, as many of each and at the same moments of the task.
        progress: told how many episodes were done.

    Raises:
        SceneError: if there are fewer than two episodes, an episode comes twice, they have
            different numbers of scenes, or a scene does not fit the policy.
    """
    options = options or AttentionOptions()
    groups = token_groups(model.tokens)
    tops = tuple(k for k in sorted(set(options.tops)) if k < len(model.tokens))
    if not tops:
        raise SceneError(
            f"Of {len(model.tokens)} tokens {min(options.tops)} are all: keep fewer (tops)."
        )
    readings: list[SceneAttention] = []
    effects: list[SceneEffects] = []
    shown: Scene | None = None
    stream = _checked(episodes)
    number = 0
    while members := tuple(islice(stream, 2)):
        at = _Moments.of(number, len(members[0]))
        numbered = enumerate(members)
        read = [_read(model, s, at, options, 2 * number + i) for i, s in numbered]
        readings += [reading for one in read for reading in one.readings]
        if len(members) == 2:
            shown = shown or members[0][at.here]
            for own, other in (read, read[::-1]):
                effects.append(_intervene(model, own, other, at, groups, tops, options))
        number += 1
        progress(len(members))
    if shown is None:
        raise SceneError(
            f"Tokens are swapped between two episodes; got {'one' if readings else 'none'}."
        )
    return AttentionAnalysis(
        AttentionSurvey(tuple(readings), groups, model.tokens.names, options.seed),
        AttentionEffects(tuple(effects), groups, tops, options.seed),
        model.tokens,
        shown,
    )


@dataclass(frozen=True)
class _Moments:
    """At which moments a pair of episodes is intervened on."""

    pair: int
    here: int
    there: int
    """The other moment, from which tokens come; the same where there is only one."""

    @classmethod
    def of(cls, pair: int, n_moments: int) -> Self:
        here = pair % n_moments
        return cls(pair, here, (here + n_moments // 2) % n_moments)


@dataclass(frozen=True)
class _Read:
    """An episode's readings, and the runs of those scenes that are intervened on."""

    scenes: Sequence[Scene]
    readings: tuple[SceneAttention, ...]
    runs: Mapping[int, SceneRun]


def _read(
    model: HookedACT,
    scenes: Sequence[Scene],
    at: _Moments,
    options: AttentionOptions,
    first: int,
) -> _Read:
    readings, runs = [], {}
    for moment, scene in enumerate(scenes):
        run = run_scene(model, scene)
        reading = read_attention(
            model,
            run,
            scene,
            moment=moment,
            positions=options.positions,
            null_draws=options.null_draws,
            # Every scene's null is drawn anew, so that their mean is over more draws.
            seed=options.seed + 7919 * (first + moment),
        )
        readings.append(reading)
        if moment in (at.here, at.there):
            runs[moment] = run
    return _Read(scenes, tuple(readings), runs)


def _intervene(
    model: HookedACT,
    own: _Read,
    other: _Read,
    at: _Moments,
    groups: Sequence[TokenGroup],
    tops: Sequence[int],
    options: AttentionOptions,
) -> SceneEffects:
    """All interventions on one scene."""
    run, reading = own.runs[at.here], own.readings[at.here]
    importance = leave_one_out(model, run)
    largest_first = lambda values: np.argsort(-values, kind="stable")
    orders = {
        "attention": largest_first(reading.averaged(reading.attention)),
        "norm": largest_first(reading.averaged(reading.norm)),
        "effect": largest_first(over_positions(importance, reading.counted)),
    }
    error = sufficiency(
        model,
        run,
        orders,
        tops,
        counted=reading.counted,
        random=options.random,
        seed=options.seed,
    )
    swaps = {}
    for name, moment in ((SAME, at.here), (OTHER, at.there)):
        scenes = [own.scenes[at.here], other.scenes[moment]]
        counted = position_weights(model.config, options.positions, scenes).numpy()
        swaps[name] = interchange(model, run, other.runs[moment], groups, counted=counted)
    return SceneEffects(reading, at.pair, importance, error, swaps)


def _checked(episodes: Iterable[Sequence[Scene]]) -> Iterator[Sequence[Scene]]:
    """The episodes one by one; each once, all with as many scenes."""
    seen: set[tuple[str, int]] = set()
    needed = 0
    for scenes in episodes:
        names = {(scene.source, scene.episode) for scene in scenes}
        needed = needed or len(scenes)
        if len(names) != 1 or len(scenes) != needed:
            raise SceneError(
                f"An episode's scenes are of one episode, {needed} of each: got {len(scenes)} of "
                f"{len(names)}."
            )
        if names & seen:
            raise SceneError(f"Episode {scenes[0].episode} comes twice: intervals would be wrong.")
        seen |= names
        yield scenes
