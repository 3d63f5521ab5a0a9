"""How v*, the values to be written, are found: by Gauss-Newton, or by the paper's Adam."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.rome.errors import EditError
from actlens.rome.linearised import Linearised
from actlens.rome.metric import Readers
from actlens.rome.problem import Problem, Write
from actlens.scene import Scene

MAX_ROWS = 6000


@dataclass(frozen=True)
class Solution:
    """A write, and how it was found."""

    write: Write
    n_steps: int
    """Forwards and backwards of the rest of the network."""


class ValueSolver(Protocol):
    """Finds what to write."""

    @property
    def unrelated(self) -> tuple[Scene, ...]:
        """Scenes whose actions it tries to keep."""
        ...

    def solve(self, problem: Problem, readers: Readers, quiet: Problem | None = None) -> Solution:
        """The write after which the points say their targets.

        Args:
            quiet: the problem of the unrelated scenes, whose targets are their present actions.
        """
        ...


@dataclass(frozen=True)
class GaussNewton:
    """The write of least drift that gives the targets, by Gauss-Newton on the exact network.

    A step goes to the shortest write that solves the problem linearised here, J^T (J J^T)^-1
    (missing + J write), as long as that halves what is missing; where the network bends too much it
    goes only towards the targets, by J^T (J J^T)^-1 missing, halved until they come nearer. For one
    key this is the v* of minimum norm; for several it takes into account that resembling keys share
    what they write, which choosing every v* by itself does not.
    """

    tolerance: float | None = None
    """Largest difference from a target, in normalised units; by default 1e-11 in float64 and 1e-5
    in float32."""
    max_steps: int = 30

    @property
    def unrelated(self) -> tuple[Scene, ...]:
        """None: what it minimises is drift over all of the data."""
        return ()

    def solve(self, problem: Problem, readers: Readers, quiet: Problem | None = None) -> Solution:
        """The write, of which every action is within tolerance.

        Raises:
            EditError: if there are too many actions to solve for at once, or if they cannot be
                reached.
        """
        n_rows = problem.target.numel()
        if n_rows > MAX_ROWS:
            raise EditError(
                f"{n_rows} actions (positions times joints of all requests) are too many to solve "
                f"for at once; the limit is {MAX_ROWS}. Ask for fewer positions, or edit in turn."
            )
        precise = problem.output.dtype == torch.float64
        tolerance = self.tolerance or (1e-11 if precise else 1e-5)
        write = problem.nothing
        missing, closest = problem.missing(write), float("inf")
        for step in range(self.max_steps):
            closest = min(closest, float(missing.abs().max()))
            if closest <= tolerance:
                return Solution(write, step)
            there = Linearised.at(problem, write)
            gram = there.gram()
            if not gram.isfinite().all():  # steps along rows that are 0 to rounding have run away
                break
            shortest = there.pulled_back(_solve(gram, missing + there.pushed(write)))
            left = problem.missing(shortest)
            if left.norm() <= missing.norm() / 2:
                write, missing = shortest, left
            else:
                step = there.pulled_back(_solve(gram, missing))
                write, missing = _nearer(problem, write, step, missing)
        raise EditError(
            f"The targets cannot be reached from here: after {self.max_steps} steps an action is "
            f"still {closest:.2g} standard deviations off. Requests that "
            "contradict each other in resembling scenes, or actions far from any that the policy "
            "makes, have no solution: ask for less, or for fewer requests at once."
        )


def _solve(
    gram: Float[Tensor, "row row"], wanted: Float[Tensor, "point joint"]
) -> Float[Tensor, "point joint"]:
    """The weights of the actions; least squares where rows depend on one another."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    column = wanted.flatten()[:, None]
    if failed:
        solved = torch.linalg.pinv(gram, hermitian=True, rtol=1e-12) @ column
    else:
        solved = torch.cholesky_solve(column, factor)
    return solved.view_as(wanted)


def _nearer(
    problem: Problem, write: Write, step: Write, missing: Tensor
) -> tuple[Write, Float[Tensor, "point joint"]]:
    """The write after a step, or after the first of its halvings that misses by less."""
    tried, left = write, missing
    for halvings in range(12):
        tried = write + step / 2**halvings
        left = problem.missing(tried)
        if left.norm() < missing.norm():
            break
    return tried, left


@dataclass(frozen=True)
class Adam:
    """The paper's way to v* (Meng et al. 2022, equation 4), with a squared error for its surprise.

    Descends |missing|^2 / |asked for|^2 + essence * |drift of unrelated scenes|^2 / |asked for|^2 +
    weight_decay * |v* - v0| / |v0|^2, means over positions of sums over joints, with every v* kept
    within `clamp` |v0| of v0, what the MLP writes now. The published numbers (20 steps of 0.5,
    decay 0.5) are for a language model's lengths and losses; these are relative to the policy's.
    Targets are approached, not reached.
    """

    n_steps: int = 200
    learning_rate: float = 0.3
    """In root mean square entries of v0."""
    weight_decay: float = 0.02
    clamp: float = 4.0
    essence: float = 0.0625
    unrelated: tuple[Scene, ...] = ()
    """Scenes whose actions should stay as they are, in place of the paper's "essence" prompts."""

    def solve(self, problem: Problem, readers: Readers, quiet: Problem | None = None) -> Solution:
        """The write after the last step."""
        like = problem.output
        before = like.flatten(0, 1).norm(dim=1).clamp_min(1e-6)
        rate = self.learning_rate * float(like.square().mean().sqrt())
        values = torch.zeros_like(like.flatten(0, 1)).requires_grad_()
        arriving = _arriving(problem, readers)
        leaking = None if quiet is None else _arriving(quiet, readers)
        with torch.no_grad():
            asked = float(_squared_error(problem, arriving, values)) or 1.0
        mean, spread = torch.zeros_like(values), torch.zeros_like(values)
        for step in range(1, self.n_steps + 1):
            with torch.enable_grad():
                loss = _squared_error(problem, arriving, values) / asked
                loss = loss + self.weight_decay * (values.norm(dim=1) / before.square()).mean()
                if quiet is not None and leaking is not None:
                    drift = _squared_error(quiet, leaking, values) / asked
                    loss = loss + self.essence * drift
            (slope,) = torch.autograd.grad(loss, values)
            with torch.no_grad():
                mean.lerp_(slope, 1 - _BETAS[0])
                spread.lerp_(slope.square(), 1 - _BETAS[1])
                size = (spread / (1 - _BETAS[1] ** step)).sqrt_().add_(1e-8)
                values.addcdiv_(mean, size, value=-rate / (1 - _BETAS[0] ** step))
                length = values.norm(dim=1).clamp_min(1e-12)
                values.mul_((self.clamp * before / length).clamp_max(1)[:, None])
        return Solution(values.detach().double().cpu().T @ readers.inverse_root, self.n_steps)


_BETAS = (0.9, 0.999)


def _arriving(problem: Problem, readers: Readers) -> Float[Tensor, "unit*position key"]:
    """How much of every key's value arrives at each of a problem's positions."""
    return (readers.inverse_root @ problem.reading).T.to(problem.output)


def _squared_error(problem: Problem, arriving: Tensor, values: Tensor) -> Tensor:
    written = (arriving @ values).view_as(problem.output)
    return (problem.actions(written) - problem.target).square().sum(1).mean()
