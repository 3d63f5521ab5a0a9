"""The claims about attention, each with its figure, its null, its rule and its verdict.

The claims are those of a note on an ACT with 602 tokens: only 5-20 of them get high attention,
varying by image; the arm-state token is not among them, because pixel tokens absorb the arm state.
A policy may have another number of tokens, so "5-20" is read twice: as a number, and as a share
(0.8-3.3 %).
"""

import numpy as np
from jaxtyping import Bool, Int

from actlens.attention.concentration import STANDS_OUT
from actlens.attention.effects import OTHER, SAME, AttentionEffects
from actlens.attention.groups import PIXELS, TokenGroup
from actlens.attention.options import CLAIMED_OF, CLAIMED_TOKENS, claimed_share
from actlens.attention.survey import EACH, AttentionSurvey
from actlens.claims import Claim, at_least, at_most, judged
from actlens.statistics import MIN_CLUSTERS, Interval, wilson


def claims_of(survey: AttentionSurvey, effects: AttentionEffects) -> tuple[Claim, ...]:
    """All claims that the policy's tokens allow to be asked about."""
    claims = [*_few(survey), *_varying(survey)]
    groups = {group.name: group for group in survey.groups}
    state = groups.get("state")
    pixels = groups.get(PIXELS) or next((g for g in survey.groups if g.is_camera), None)
    if state is not None:
        claims += [*_not_the_state(survey, state), *_absorbed(effects, state, pixels)]
    return (*claims, *_used(effects))


FEW = "only 5-20 of the 602 tokens get high attention"
VARYING = "which ones varies by image"
NOT_STATE = "the arm-state token is not among them"
ABSORBED = "pixel tokens absorb the arm state"
USED = "what is attended to is what matters"
"""The note does not say so, but its use of attention supposes it."""


def _few(survey: AttentionSurvey) -> list[Claim]:
    most, n = CLAIMED_TOKENS[1], survey.n_tokens
    share, most_share = 100 / n, round(100 * most / CLAIMED_OF, 1)
    claims = []
    for measure, figure in (
        ("tokens_for_0.9", "hold 90 % of it (mean over heads)"),
        ("standing_out", f"have more than {STANDS_OUT} times the equal share"),
    ):
        found, null = (survey.measure(measure, null=x) for x in (False, True))
        for unit, factor, limit in (("tokens", 1.0, most), (f"% of {n} tokens", share, most_share)):
            scaled = Interval(found.estimate * factor, found.low * factor, found.high * factor)
            claims.append(
                judged(
                    FEW, unit, figure, scaled,
                    null=float(null.estimate) * factor, null_is=_RANDOM, rule=(at_most, limit),
                )
            )  # fmt: skip
    single, null = (survey.measure("inverse_simpson", head=EACH, null=x) for x in (False, True))
    kindest = judged(
        FEW, "tokens", "by 1 / sum p² of single heads, a kind measure", single,
        null=float(null.estimate), null_is=_RANDOM, rule=(at_most, most),
    )  # fmt: skip
    return [*claims, kindest]


_RANDOM = "random logits of the same spread"


def _varying(survey: AttentionSurvey) -> list[Claim]:
    among = survey.pixels or tuple(range(survey.n_tokens))
    claims = []
    for k in _sizes(survey.n_tokens):
        if k >= len(among):
            continue
        found = survey.overlap_of(k, among)
        claims.append(
            judged(
                VARYING,
                f"top {k} {'pixel ' * bool(survey.pixels)}tokens",
                "Jaccard overlap, other episode, same moment",
                found.same_moment,
                null=found.chance,
                null_is="random sets",
                rule=(at_most, 0.5),
            )
        )
    return claims


def _sizes(n_tokens: int) -> tuple[int, int]:
    """How many tokens the claim means here: its number, and its share of them."""
    return min(CLAIMED_TOKENS[1], n_tokens), claimed_share(n_tokens)


def _not_the_state(survey: AttentionSurvey, state: TokenGroup) -> list[Claim]:
    weights, token = survey.averaged, state.tokens[0]
    rank = 1 + (weights > weights[:, [token]]).sum(1)
    among = lambda k: _percent_of_scenes(rank <= k, survey.episodes)
    return [
        judged(
            NOT_STATE, f"top {k}", "% of scenes in which it is", among(k),
            null=100 * k / survey.n_tokens, null_is="a random token", rule=(at_most, 50),
        )
        for k in _sizes(survey.n_tokens)
        if k < survey.n_tokens
    ]  # fmt: skip


def _percent_of_scenes(
    holds: Bool[np.ndarray, " scene"], episodes: Int[np.ndarray, " scene"]
) -> Interval:
    """With Wilson's interval, counting an episode as one trial: a bootstrap has none of 0 and 1."""
    share = np.bincount(episodes, holds) / np.bincount(episodes)
    bounds = (np.nan, np.nan)
    if len(share) >= MIN_CLUSTERS:
        bounds = wilson(round(share.sum()), len(share))
    return Interval(*(np.asarray(100 * x) for x in (holds.mean(), *bounds)))


def _absorbed(
    effects: AttentionEffects, state: TokenGroup, pixels: TokenGroup | None
) -> list[Claim]:
    claims = [
        judged(
            ABSORBED, f"swap, {moment}", "1 - effect at the encoder's output / at its input",
            effects.absorption(state, moment), null=0.0, null_is="nothing absorbed",
            rule=(at_least, 0.5),
        )
        for moment in (SAME, OTHER)
    ]  # fmt: skip
    if pixels is None:
        return claims
    return claims + [
        judged(
            ABSORBED, f"carriers, {moment}", "share that arrives through pixel tokens",
            effects.carried(state, pixels, moment), null=0.0, null_is="nothing",
            rule=(at_least, 0.5),
        )
        for moment in (SAME, OTHER)
    ]  # fmt: skip


def _used(effects: AttentionEffects) -> list[Claim]:
    k = max((k for k in effects.tops if k <= CLAIMED_TOKENS[1]), default=effects.tops[0])
    at = effects.tops.index(k)
    claims = [
        judged(
            USED, reading, "error / distance of other scenes' actions",
            _row(effects.error(chosen, scaled=True), at),
            null=float(effects.error(control, scaled=True).estimate[at]),
            null_is="as many random tokens", rule=(at_most, 0.1),
        )
        for reading, chosen, control in (
            (f"top {k} alone", "attention", "random"),
            (f"every head's and position's own {k}", "own", "own_random"),
        )
    ]  # fmt: skip
    ranks = judged(
        USED, "ranks", "Spearman's correlation with the exact effect of a token",
        effects.rank_correlation("attention"), null=0.0, null_is="unrelated",
        rule=(at_least, 0.5),
    )  # fmt: skip
    return [*claims, ranks]


def _row(interval: Interval, at: int) -> Interval:
    return Interval(*(np.asarray(x[at]) for x in (interval.estimate, interval.low, interval.high)))
