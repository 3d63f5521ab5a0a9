"""What an edit has to beat: other changes of the policy that grant, or do not grant, a request.

A change is what a policy is after it: called with kept runs of any scenes, it gives their actions.
Those of fine-tuning and of retrieval are in `fine_tuning` and `overlay`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.metric import KeyMetric, Readers
from actlens.rome.prepared import Prepared
from actlens.rome.weight_edit import WeightEdit

Change = Callable[[MLPRuns], Float[Tensor, "scene chunk joint"]]
"""Kept runs of some scenes -> their normalised actions under the change. An edit is one as
`lambda runs: edited_actions(runs, edit)`."""


@dataclass(frozen=True)
class WeightChange:
    """W' = W + delta for the output weights W of one MLP, of any rank."""

    site: MLPSite
    delta: Float[Tensor, "d_model neuron"]
    """In float64."""
    weight_norm: float
    """Of W, before."""

    @property
    def norm(self) -> float:
        """|W' - W|, Frobenius."""
        return float(self.delta.norm())

    @property
    def relative_norm(self) -> float:
        """|W' - W| / |W|."""
        return self.norm / self.weight_norm

    def __call__(self, runs: MLPRuns) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions of the scenes with the changed weights.

        Raises:
            EditError: if the runs were kept at another MLP.
        """
        require_same_site(self.site, runs)
        return runs.actions_with(runs.keys.to(self.delta) @ self.delta.T)


@dataclass(frozen=True)
class HeadShift:
    """A constant added to every action of every scene: a change of the action head's bias."""

    shift: Float[Tensor, " joint"]
    """Normalised."""

    @property
    def relative_norm(self) -> float:
        """NaN: no weights of an MLP change."""
        return float("nan")

    def __call__(self, runs: MLPRuns) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions of the scenes with the shift."""
        return runs.actions + self.shift.to(runs.actions)


def head_shift(prepared: Prepared) -> HeadShift:
    """The bias that grants the requests best in their own scenes, in the least-squares sense.

    For one constant offset it grants it exactly; everywhere else it does the same, so it is what an
    edit must be more specific than.
    """
    asked = [
        one.target - actions[list(one.positions)]
        for one, actions in zip(prepared.resolved, prepared.runs.actions, strict=True)
    ]
    return HeadShift(torch.cat(asked).mean(0))


def at_random_keys(
    edit: WeightEdit, metric: KeyMetric, *, seed: int = 0, avoid: Collection[int] = ()
) -> WeightChange:
    """An edit of the same size at keys of other scenes: the null of any edit of that size.

    It writes along the edit's own directions and has its Frobenius norm, but reads by random keys
    of the statistics' sample, in the same metric.

    Args:
        avoid: episodes whose keys are not drawn, such as the requests' own.

    Raises:
        EditError: if the edit has more keys than there are to draw from.
    """
    statistics = metric.statistics
    outside = ~torch.isin(statistics.sampled_from[:, 0], torch.tensor([*avoid], dtype=torch.long))
    keys = statistics.sample[outside]
    n = len(edit.right)
    if n > len(keys):
        raise EditError(
            f"The edit reads by {n} keys; the statistics' sample has {len(keys)} of other episodes."
        )
    chosen = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))[:n]
    return _same_size(edit, Readers.of(metric, keys[chosen]).exact)


def along_random_directions(edit: WeightEdit, metric: KeyMetric, *, seed: int = 0) -> WeightChange:
    """An edit of the same size that reads by random directions: no key is like another in them.

    The directions are C^-1/2 g with Gaussian g: what they read from the data has the same mean
    square for all, as what `C^-1 k*` reads is scaled by the same metric.
    """
    n, n_neurons = edit.right.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_neurons, n, generator=generator, dtype=torch.float64)
    rows = torch.linalg.solve_triangular(metric.factor.T, noise.to(metric.factor), upper=True).T
    return _same_size(edit, rows)


def without_statistics(metric: KeyMetric) -> KeyMetric:
    """The metric of ROME without C: every direction of the keys counts the same.

    It is the limit of large ridges; the update reads by k* itself.
    """
    identity = torch.eye(len(metric.factor)).to(metric.factor)
    return replace(metric, ridge=float("inf"), factor=identity)


def within_neurons(
    edit: WeightEdit, metric: KeyMetric, neurons: Int[Tensor, " chosen"]
) -> WeightChange:
    """The same values at the same keys, by changing the columns of some neurons alone.

    Of all changes of these columns that write what the edit writes at its keys, the one that moves
    the data least. What these neurons hardly tell apart is not told apart: the tokens of a scene
    have many nearly equal keys, and exact differences between them would cost a norm without bound.

    Args:
        neurons: their indices.
    """
    moment = (metric.factor @ metric.factor.T)[neurons[:, None], neurons]
    inside = replace(metric, factor=torch.linalg.cholesky(moment))
    keys = edit.keys[:, neurons]
    along = inside.solve(keys)
    squares, directions = torch.linalg.eigh((along @ keys.T + keys @ along.T) / 2)
    kept = squares > _TOLD_APART * squares[-1]
    rows = (directions[:, kept] / squares[kept]) @ directions[:, kept].T @ along
    delta = torch.zeros(len(edit.left), edit.keys.shape[1], dtype=torch.float64)
    delta[:, neurons] = edit.written_at(edit.keys).T @ rows
    return WeightChange(edit.site, delta, edit.weight_norm)


def require_same_site(site: MLPSite, runs: MLPRuns) -> None:
    """Refuse runs that were kept at another MLP.

    Raises:
        EditError: naming both.
    """
    if site != runs.site:
        raise EditError(
            f"The change is of {site.block}; the scenes were kept at {runs.site.block}."
        )


def _same_size(edit: WeightEdit, rows: Float[Tensor, "rank neuron"]) -> WeightChange:
    delta = edit.left @ rows.to(edit.left)
    length = float(delta.norm())
    if length:
        delta *= edit.norm / length
    return WeightChange(edit.site, delta, edit.weight_norm)


_TOLD_APART = 1e-4
"""Of the keys' largest squared length. The actions come out the same to four digits without the
rest, at a norm up to twenty times smaller."""
