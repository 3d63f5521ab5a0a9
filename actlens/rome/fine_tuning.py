"""Fine-tuning of one MLP's output weights on the requests' own scenes, ROME's first rival."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.rome.errors import EditError
from actlens.rome.metric import Readers
from actlens.rome.prepared import Prepared
from actlens.rome.problem import Problem
from actlens.rome.rivals import WeightChange


@dataclass(frozen=True)
class FineTuning:
    """Adam on the squared error of the requested actions, until they are reached or time is up.

    The rival of Meng et al. 2022 (section 3.3: FT), and with a cap that of Zhu et al. 2020 (FT+L):
    no weight may move further than the cap, to which it is clipped after every step.
    """

    learning_rate: float = 0.03
    """In root mean square entries of the weights: Adam moves a weight by about so much a step."""
    max_steps: int = 200
    tolerance: float = 0.01
    """Largest difference from a target at which it stops, in normalised units: stopping late costs
    other scenes more."""
    cap: float | None = None
    """On the change of any weight, in root mean square entries of the weights."""

    def __post_init__(self) -> None:
        given = (self.learning_rate, self.max_steps, self.tolerance, self.cap)
        if not all(number is None or number > 0 for number in given):
            raise EditError(f"{self}: all of these must be positive.")


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning made of the weights."""

    change: WeightChange
    n_steps: int
    left_over: float
    """The largest difference from a target, in normalised units."""
    reached: bool
    """Whether that is within the tolerance."""

    @property
    def relative_norm(self) -> float:
        """|W' - W| / |W|."""
        return self.change.relative_norm

    def __call__(self, runs: MLPRuns) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions of the scenes with the fine-tuned weights.

        Raises:
            EditError: if the runs were kept at another MLP.
        """
        return self.change(runs)


def fine_tune(prepared: Prepared, options: FineTuning | None = None) -> FineTuned:
    """Fine-tune an MLP's output weights on all requests at once, resumed from the kept runs.

    The same weights as torch's Adam finds on the whole policy with everything else frozen, at the
    price of what lies behind the MLP. Deterministic: the requests are one batch.
    """
    options = options or FineTuning()
    weight = prepared.weight.double().cpu()
    entry = float(weight.square().mean().sqrt())
    # Reading by every neuron makes the change of the weights itself the write.
    identity = torch.eye(weight.shape[1], dtype=torch.float64)
    every = Readers(identity, identity, identity, identity)
    problem = Problem.of(prepared.runs, every, prepared.resolved)
    delta = problem.nothing.requires_grad_()
    adam = torch.optim.Adam([delta], lr=options.learning_rate * entry, fused=True)
    step = 0
    while True:
        with torch.enable_grad():
            missing = problem.target - problem.actions(problem.written(delta))
            loss = missing.square().sum(1).mean()
        left_over = float(missing.detach().abs().max())
        if left_over <= options.tolerance or step == options.max_steps:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        adam.step()
        step += 1
        if options.cap is not None:
            with torch.no_grad():
                delta.clamp_(-options.cap * entry, options.cap * entry)
    change = WeightChange(prepared.runs.site, delta.detach(), float(weight.norm()))
    return FineTuned(change, step, left_over, left_over <= options.tolerance)
