"""Rank-one edits at one key: ROME's, and the same at other matrices, to tell what is the MLP's."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.finetuning.kept import KeptScenes
from actlens.finetuning.parts import Part, cross_output, head_matrix, last_mlp, output_weights
from actlens.finetuning.updates import AlongKey
from actlens.finetuning.ways import Budget, Way
from actlens.interventions.network import network
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.rome.moments import EpisodeMoments
from actlens.rome.ridge import held_out_drift, ridged_factor

Keys = Float[Tensor, "scene position neuron"]


@dataclass(frozen=True)
class Matrix:
    """A matrix and what it reads, its keys."""

    part: Part
    keys: Callable[[HookedACT, KeptScenes], Keys]


def coefficients(model: HookedACT, kept: KeptScenes) -> Keys:
    """The coefficients of the last decoder MLP with the model's present weights."""
    site = last_mlp(model)
    ops = {op.output: op for op in network(model, {site.keys})}
    value = kept.activations[site.inputs]
    for name in (f"{site.block}.mlp.hook_pre", site.keys):
        compute = ops[name].compute
        assert compute is not None
        value = compute(value)
    return value


def matrices(model: HookedACT) -> tuple[Matrix, ...]:
    """The last matrices of the decoder's parts: of its MLP, of its cross-attention, the head's."""
    block = last_mlp(model).block
    mixed = lambda model, kept: kept.activations[f"{block}.cross_attn.hook_z"].flatten(2)
    last = "hook_resid_post" if model.config.pre_norm else "hook_normalized_resid_post"
    read_last = lambda model, kept: model.ln_final(kept.activations[f"{block}.{last}"])
    return (
        Matrix(output_weights(model), coefficients),
        Matrix(cross_output(model), mixed),
        Matrix(head_matrix(model), read_last),
    )


@torch.no_grad()
def rank_one_ways(model: HookedACT, known: KeptScenes, new: KeptScenes) -> tuple[Way, ...]:
    """A rank-one edit of every matrix at k*, the mean key of all new scenes; and what is no edit.

    W' = W + u (C^-1 k*)^T / (k*^T C^-1 k*), of which u is trained, with C the second moment of the
    keys of what is known. As for `actlens.rome`, every episode weighs the same and the ridge is
    the one that leaks least into other episodes. Only positions that are carried out make k*.
    The null writes at the mean key of what is *known*: of equal size, but for no place.

    Raises:
        EditError: if a matrix reads nothing at all.
    """
    ways = []
    for matrix in matrices(model):
        along = _solver(matrix, model, known)
        at = along(_mean_key(matrix, model, new))
        ways.append(Way(matrix.part, AlongKey(at), Budget.RANK_ONE))
    mlp = matrices(model)[0]
    at = _solver(mlp, model, known)(_mean_key(mlp, model, known))
    return (*ways, Way(mlp.part, AlongKey(at), Budget.KNOWN_KEY))


def _mean_key(matrix: Matrix, model: HookedACT, kept: KeptScenes) -> Float[Tensor, " neuron"]:
    at = list(executed_positions(model.config))
    return matrix.keys(model, kept)[:, at][kept.counted[:, at]].double().mean(0)


def _solver(
    matrix: Matrix, model: HookedACT, known: KeptScenes
) -> Callable[[Float[Tensor, " neuron"]], Float[Tensor, " neuron"]]:
    """k -> C^-1 k."""
    (weight,) = matrix.part.weights(model).values()
    moments, sample = EpisodeMoments(weight), ([], [])
    keys, rng = matrix.keys(model, known), np.random.default_rng(0)
    for episode in np.unique(known.episodes):
        rows = np.flatnonzero(known.episodes == episode)
        moments.enter(int(episode))
        counted = known.counted[rows]
        for row, own in zip(rows, counted, strict=True):
            sample[moments.half].append(keys[row, int(rng.choice(np.flatnonzero(own.cpu())))])
        moments.add(keys[rows][counted])
    moments.leave()
    some = tuple(
        torch.stack(half) if half else keys.new_zeros(0, keys.shape[-1]) for half in sample
    )
    ridge = held_out_drift(moments.halves(), (some[0], some[1])).chosen
    factor = ridged_factor(moments.mean(), ridge)
    return lambda key: torch.cholesky_solve(key[:, None], factor)[:, 0]
