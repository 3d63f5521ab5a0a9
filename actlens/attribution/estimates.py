"""What putting a donor's activation in would do, to first order: difference times gradient."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.attribution import softmax_fix
from actlens.attribution.cuts import Cut
from actlens.attribution.linearise import Scalar, linearise
from actlens.interventions.softmax_update import scores_of
from actlens.model.act import HookedACT


def attribute(
    model: HookedACT,
    run: Mapping[str, Tensor],
    donor: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    scalar: Scalar,
    *,
    qk_fix: bool,
) -> Float[Tensor, " site"]:
    """The estimates for one scalar of the actions, with the gradient at the run: unaudited.

    One forward and one backward of the transformer, for all sites of all cuts together.
    """
    there = linearise(model, run, names_needed(cuts, qk_fix=qk_fix), scalar)
    return estimates(model, cuts, there.activations, donor, there.gradients, qk_fix=qk_fix)


_KEY_AXES = {"token_k", "query_k", "token"}
"""Of attention scores, whose queries lie on another axis."""


def names_needed(cuts: Sequence[Cut], *, qk_fix: bool) -> tuple[str, ...]:
    """The hook points whose activations and gradients the estimates are made of."""
    names = dict.fromkeys(cut.hook for cut in cuts)
    for cut in cuts:
        if qk_fix and _passes_softmax(cut):
            names |= dict.fromkeys(_attention(cut.hook).values())
    return tuple(names)


@torch.no_grad()
def estimates(
    model: HookedACT,
    cuts: Sequence[Cut],
    run: Mapping[str, Tensor],
    donor: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    qk_fix: bool,
) -> Float[Tensor, " site"]:
    """The estimated change of the scalar for every site of the cuts, one after the other, float64.

    Args:
        run: the activations into which the donor's are put.
        gradients: of the scalar, at `names_needed`.
        qk_fix: queries, keys and scores through the softmax exactly. It takes whole ones: parts of
            a query or key (cuts along `d_head`) and single scores are linearised as all else.
    """
    by_hook: dict[str, list[int]] = {}
    for number, cut in enumerate(cuts):
        by_hook.setdefault(cut.hook, []).append(number)
    found: dict[int, Tensor] = {}
    for hook, numbers in by_hook.items():
        fixed = [i for i in numbers if qk_fix and _passes_softmax(cuts[i])]
        linear = [i for i in numbers if i not in fixed]
        axes = [axis for axis in model.hook_point(hook).axes if axis != "batch"]
        if linear:
            product = ((donor[hook] - run[hook]) * gradients[hook])[0]
            found |= {i: _summed(product, axes, cuts[i].axes) for i in linear}
        if fixed:
            of = _through_softmax([cuts[i] for i in fixed], axes, run, donor, gradients)
            found |= dict(zip(fixed, of, strict=True))
    return torch.cat([found[i] for i in range(len(cuts))])


def _summed(values: Tensor, axes: Sequence[str], kept: Sequence[str]) -> Float[Tensor, " site"]:
    """Sums over the axes that a cut does not keep, flat in the order of those that it keeps."""
    away = [i for i, axis in enumerate(axes) if axis not in kept]
    left = [axis for axis in axes if axis in kept]
    total = values.sum(away, dtype=torch.float64) if away else values.double()
    return total.permute([left.index(axis) for axis in kept]).flatten()


def _passes_softmax(cut: Cut) -> bool:
    """Whether a site of the cut is all of a query, of a key, or of a query's scores."""
    if cut.hook.endswith(".hook_attn_scores"):
        return _KEY_AXES.isdisjoint(cut.axes)
    return cut.hook.endswith((".hook_q", ".hook_k")) and "d_head" not in cut.axes


def _attention(hook: str) -> dict[str, str]:
    prefix = hook.rpartition(".")[0]
    return {name: f"{prefix}.hook_{name}" for name in ("q", "k", "attn_scores", "pattern")}


def _through_softmax(
    cuts: Sequence[Cut],
    axes: Sequence[str],
    run: Mapping[str, Tensor],
    donor: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> Iterator[Float[Tensor, " site"]]:
    """The estimates of several cuts of one attention's queries, of its keys, or of its scores."""
    hook, names = cuts[0].hook, _attention(cuts[0].hook)
    gradient, scores = gradients[names["pattern"]][0], run[names["attn_scores"]][0]
    if hook == names["attn_scores"]:
        product = (donor[names["pattern"]] - run[names["pattern"]])[0] * gradient
        yield from (_summed(product, axes, cut.axes) for cut in cuts)
        return
    if hook == names["q"]:
        changed = scores_of(donor[names["q"]], run[names["k"]])[0]
        alone = softmax_fix.of_queries(gradient, scores, changed)
        together = alone.sum(0)  # each query has a softmax of its own
    else:
        changed = scores_of(run[names["q"]], donor[names["k"]])[0]
        alone = softmax_fix.of_keys(gradient, scores, changed)
        together = softmax_fix.of_all_keys(gradient, scores, changed)
    for cut in cuts:
        position = [axis for axis in cut.axes if axis != "head"]
        if position:
            yield _summed(alone, [*position, "head"], cut.axes)
        else:
            yield _summed(together, ["head"], cut.axes)
