"""A change of an MLP's output weights, as a value: looked into, applied, undone, saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import digests_of, tensor_sha256, weights_sha256
from actlens.rome.record import EditRecord


@dataclass(frozen=True)
class WeightEdit:
    """W' = W + left @ right, for the output weights W of one MLP of one policy."""

    site: MLPSite
    left: Float[Tensor, "d_model rank"]
    """In float64, as the other factors."""
    right: Float[Tensor, "rank neuron"]
    keys: Float[Tensor, "key neuron"]
    """The keys k* that it was made at."""
    weight_norm: float
    """Of W, before."""
    weights_sha256: str
    """Of the policy it was made for."""
    edited_sha256: str
    """Of the policy it makes."""
    record: EditRecord

    @property
    def delta(self) -> Float[Tensor, "d_model neuron"]:
        """W' - W, in float64; the same bits on every machine."""
        # One product and one sum at a time: a matrix product rounds differently on other machines,
        # and then the edited policy would have another hash there.
        total = self.left.new_zeros(len(self.left), self.right.shape[1])
        for column, row in zip(self.left.T, self.right, strict=True):
            total += column[:, None] * row
        return total

    @property
    def norm(self) -> float:
        """|W' - W|, Frobenius."""
        return float(self.delta.norm())

    @property
    def relative_norm(self) -> float:
        """|W' - W| / |W|."""
        return self.norm / self.weight_norm

    @property
    def rank(self) -> int:
        """Of W' - W, to a relative precision of 1e-10."""
        lengths = torch.linalg.svdvals(self.delta)
        return int((lengths > 1e-10 * lengths[0]).sum())

    def written_at(self, keys: Float[Tensor, "*at neuron"]) -> Float[Tensor, "*at d_model"]:
        """What it adds to the MLP's output where the key is this one, in float64."""
        exact = keys.to(self.right)
        return exact @ self.right.T @ self.left.T

    def spill(self, keys: Float[Tensor, "*at neuron"]) -> Float[Tensor, "*at"]:
        """How much of the edit other keys get: |write there| / |write at its own keys|.

        The latter is the root mean square over its own. For one key k it is |k^T C^-1 k'| / k^T
        C^-1 k.
        """
        own = self.written_at(self.keys).square().sum(-1).mean().sqrt()
        return self.written_at(keys).norm(dim=-1) / own

    def on(self, weight: Float[Tensor, "d_model neuron"]) -> Float[Tensor, "d_model neuron"]:
        """The edited weights, in the dtype of the given ones and with one rounding.

        Raises:
            EditError: if they have another shape than the edit.
        """
        delta, exact = self.delta, weight.detach().double()
        if delta.shape != exact.shape:
            raise EditError(
                f"This edit changes a matrix of {tuple(delta.shape)}; the output weights of "
                f"{self.site.block} have {tuple(exact.shape)}."
            )
        return (exact + delta.to(exact.device)).to(weight.dtype)

    def apply(self, model: HookedACT) -> "Applied":
        """Change the policy's weights, for the length of a `with` block or until undone.

        Raises:
            EditError: if the policy has other weights than the edit was made for, or has the edit
                already.
        """
        return apply_edits(model, self)


@dataclass(frozen=True)
class _Changed:
    """One matrix that was changed: the very tensor, what it held, and what it holds."""

    weight: Tensor
    before: Tensor
    after: Tensor


class Applied:
    """Edits in force. Use it as a context, or call `undo`; either restores every bit."""

    def __init__(self, changed: Mapping[str, _Changed]):
        self._changed = dict(changed)

    def undo(self) -> None:
        """Put back the weights that were there before.

        Raises:
            EditError: if that was done already, or something else has changed them since; then
                they stay as they are.
        """
        if not self._changed:
            raise EditError("This edit was undone already.")
        for name, one in self._changed.items():
            if not torch.equal(one.weight, one.after):
                raise EditError(f"{name} was changed after this edit: undo that change first.")
        self._restore()

    def _restore(self) -> None:
        with torch.no_grad():
            for one in self._changed.values():
                one.weight.copy_(one.before)
        self._changed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._restore()


def apply_edits(model: HookedACT, *edits: WeightEdit) -> Applied:
    """Apply edits in their order; nothing is changed if one of them does not fit.

    Each must have been made for the policy as it is, or for the policy as the edits before it in
    the list leave it: edits made side by side add up, edits made in turn follow one another.

    Raises:
        EditError: if there is no edit, or one was made for other weights or is there already.
    """
    if not edits:
        raise EditError("There is no edit to apply.")
    digests = dict(digests_of(model))
    start = now = weights_sha256(digests)
    changed: dict[str, _Changed] = {}
    applied: set[str] = set()
    for edit in edits:
        name = edit.site.matrix
        made = edit.edited_sha256
        if edit.weights_sha256 not in (start, now) or (made in applied and made != start):
            raise EditError(_why_not(edit, now, applied))
        applied.add(made)
        weight = MLPSite.of(model, edit.site.block).layer(model).weight
        held = changed.get(name) or _Changed(weight, weight.detach().clone(), weight.detach())
        edited = edit.on(held.after)
        changed[name] = _Changed(weight, held.before, edited)
        digests[name] = tensor_sha256(edited)
        now = weights_sha256(digests)
    with torch.no_grad():
        for one in changed.values():
            one.weight.copy_(one.after)
    return Applied(changed)


def _why_not(edit: WeightEdit, found: str, applied: set[str]) -> str:
    """What to say where an edit is there already, or was made for another policy than this one."""
    if edit.edited_sha256 in {found, *applied}:
        return f"This edit of {edit.site.block} is applied already: its weights are in place."
    return (
        f"This edit of {edit.site.block} was made for other weights ({edit.weights_sha256[:12]}; "
        f"this policy's are {found[:12]}): take that policy, undo what was changed since, or make "
        "the edit anew."
    )


def edited_actions(runs: MLPRuns, *edits: WeightEdit) -> Float[Tensor, "scene chunk joint"]:
    """Normalised actions of scenes under edits of the MLP that they were kept at; none is applied.

    It costs what lies behind the MLP, not a forward, and agrees with the edited policy to rounding.

    Raises:
        EditError: if an edit is of another MLP.
    """
    written = torch.zeros_like(runs.output)
    for edit in edits:
        if edit.site != runs.site:
            raise EditError(
                f"The edit is of {edit.site.block}; the scenes were kept at {runs.site.block}."
            )
        # In the runs' precision: a policy with the edit in its weights computes no finer.
        right, left = edit.right.to(runs.keys), edit.left.to(runs.keys)
        written = written + runs.keys @ right.T @ left.T
    return runs.actions_with(written)
