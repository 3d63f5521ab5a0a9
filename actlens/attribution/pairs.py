"""Attributions over pairs of scenes, and exact patches of a sample of their sites."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from actlens.attribution.audit import draw_sample, exact_effects
from actlens.attribution.cuts import Cut, cuts_of
from actlens.attribution.one_pair import Ends, PairEstimates, cost_of_one_gradient, estimate_pair
from actlens.attribution.options import AttributionOptions
from actlens.attribution.result import AttributionResult
from actlens.errors import InterventionError, SceneError
from actlens.metrics import Direction
from actlens.model.act import HookedACT
from actlens.scene import ScenePair


def attribute_pairs(
    model: HookedACT,
    pairs: Sequence[ScenePair],
    cuts: Sequence[Cut] | None = None,
    *,
    options: AttributionOptions | None = None,
    clusters: Int[np.ndarray, " pair"] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AttributionResult:
    """Estimate what patching every site would restore, in both directions, and audit the estimates.

    A forward and a backward from the tokens at each of a pair's two scenes give all estimates. Then
    of every cut the sites with the largest pooled estimates (in either direction), and as many
    others at random, are patched exactly in every pair.

    Args:
        cuts: what is attributed; `cuts_of(model)` if not given.
        clusters: which pairs share an episode; each is one of its own if not given.
        seed: of the random sample and the bootstrap.
        progress: called with (passes and patches done, in all).

    Raises:
        InterventionError: if there is nothing to attribute.
        SceneError: if no pair is left whose two action chunks differ enough, or `clusters` has
            another length than `pairs`.
    """
    options = options or AttributionOptions()
    cuts = cuts_of(model) if cuts is None else tuple(cuts)
    if not cuts:
        raise InterventionError("There is nothing to attribute: give at least one cut.")
    labels = np.arange(len(pairs)) if clusters is None else np.asarray(clusters)
    if len(labels) != len(pairs):
        raise SceneError(f"{len(labels)} clusters are named for {len(pairs)} pairs.")
    passes = options.gradients
    patches = 2 * sum(min(len(cut), 2 * options.n_audit) for cut in cuts)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, len(pairs) * (passes + patches))

    kept: list[int] = []
    estimated: list[PairEstimates] = []
    left_out: list[tuple[ScenePair, float]] = []
    cost = np.nan
    for number, pair in enumerate(pairs):
        ends = Ends.of(model, pair, options)
        if ends.effect < options.min_effect or not ends.effect:
            left_out.append((pair, ends.effect))
            advance(passes + patches)
            continue
        if not kept:
            cost = cost_of_one_gradient(model, ends, cuts, options)
        kept.append(number)
        estimated.append(estimate_pair(model, ends, cuts, options))
        advance(passes)
    if not kept:
        largest = max((effect for _, effect in left_out), default=0.0)
        raise SceneError(
            f"The two actions of {'the pair' if len(pairs) == 1 else f'all {len(pairs)} pairs'} "
            f"differ by less than {options.min_effect:g} (largest {largest:.3g}), "
            "so there is nothing to restore: choose scenes that differ more, or lower min_effect."
        )
    pooled = [np.sum([one.chosen[way] for one in estimated], 0) for way in Direction]
    sample = draw_sample(cuts, np.abs(np.stack(pooled)).max(0), options.n_audit, seed=seed)
    exact = []
    for number in kept:
        # Run again rather than kept: a scene's activations take hundreds of megabytes.
        ends = Ends.of(model, pairs[number], options)
        exact.append(
            {
                way: exact_effects(
                    model, ends.base[way], ends.donor(way), cuts, sample,
                    weights=ends.weights, options=options, advance=advance,
                )
                for way in Direction
            }
        )  # fmt: skip
    return AttributionResult(
        tuple(cuts),
        tuple(estimated),
        sample,
        tuple(exact),
        tuple(pairs[number] for number in kept),
        labels[kept],
        tuple(left_out),
        model.tokens,
        options,
        cost,
        seed,
    )
