"""The exact Jacobian of a problem's actions, and the linear system it makes."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.rome.problem import Problem, Write


@dataclass(frozen=True)
class Linearised:
    """How every action moves, to first order, with what is written in its unit; on the CPU."""

    problem: Problem
    actions: Float[Tensor, "point joint"]
    """At the write at which the Jacobian was taken."""
    jacobian: Float[Tensor, "point joint position d_model"]

    @classmethod
    def at(cls, problem: Problem, write: Write) -> Self:
        """The Jacobian by reverse differentiation: a backward per joint and position of a unit.

        Units do not see one another, so one backward serves all of them.
        """
        written = problem.written(write).detach().to(problem.output).requires_grad_()
        with torch.enable_grad():
            actions = problem.actions(written)
            rank = _rank_in_unit(problem)
            groups = [(rank == k).nonzero()[:, 0] for k in range(int(rank.max()) + 1)]
            sums = [actions[points].sum(0).unbind() for points in groups]
        jacobian = written.new_zeros(*actions.shape, *written.shape[1:])
        for points, of_joints in zip(groups, sums, strict=True):
            for joint, total in enumerate(of_joints):
                (found,) = torch.autograd.grad(total, written, retain_graph=True)
                jacobian[points, joint] = found[problem.unit[points]]
        return cls(problem, actions.detach().cpu(), jacobian.cpu())

    def gram(self) -> Float[Tensor, "point*joint point*joint"]:
        """J J^T with J the Jacobian by the write, in float64."""
        problem = self.problem
        kernel = problem.reading.T @ problem.reading  # between positions of units
        n_joints = self.jacobian.shape[1]
        rows = self.jacobian.flatten(0, 1).double()
        unit = problem.unit.repeat_interleave(n_joints)
        if rows.shape[1] == 1:
            rows = rows[:, 0]
            return (rows @ rows.T) * kernel[unit[:, None], unit]
        blocks = kernel.unflatten(0, problem.output.shape[:2]).unflatten(
            2, problem.output.shape[:2]
        )
        found = rows.new_zeros(len(rows), len(rows))
        for a in unit.unique():
            for b in unit.unique():
                mine, others = (unit == a).nonzero()[:, 0], (unit == b).nonzero()[:, 0]
                arriving = torch.einsum("rpd,pq->rqd", rows[mine], blocks[a, :, b])
                found[mine[:, None], others] = arriving.flatten(1) @ rows[others].flatten(1).T
        return found

    def pulled_back(self, weights: Float[Tensor, "point joint"]) -> Write:
        """J^T times some weights of the actions."""
        problem = self.problem
        total = torch.zeros(problem.output.shape, dtype=torch.float64, device=weights.device)
        by_point = torch.einsum("kj,kjpd->kpd", weights, self.jacobian.to(weights))
        total.index_add_(0, problem.unit, by_point)
        return total.flatten(0, 1).T @ problem.reading.T

    def pushed(self, write: Write) -> Float[Tensor, "point joint"]:
        """J times a write."""
        written = self.problem.written(write)[self.problem.unit]
        return torch.einsum("kjpd,kpd->kj", self.jacobian.to(written), written)


def _rank_in_unit(problem: Problem) -> Tensor:
    """How many points of the same unit come before each point."""
    same = problem.unit[:, None] == problem.unit
    return same.tril(-1).sum(1)
