"""Which inference's action is carried out at a control step: LeRobot's queue and ensemble."""

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTConfig

Chunk = Float[Tensor, "batch chunk joint"]
Action = Float[Tensor, "batch joint"]


@dataclass
class Clock:
    """Where a rollout stands; hooks read it as `hook.clock`.

    Most control steps are answered from the queue: the network, and with it every hook, runs only
    at inference steps. Both count from 0 after `reset`; -1 means that none has happened.
    """

    control_step: int = -1
    inference_step: int = -1


class ActionQueue:
    """The first `n_action_steps` actions of a chunk, one a control step; refilled when empty."""

    def __init__(self, n_action_steps: int):
        self._actions: deque[Action] = deque(maxlen=n_action_steps)
        self._n_action_steps = n_action_steps

    @property
    def needs_chunk(self) -> bool:
        """Whether the next control step runs the network."""
        return not self._actions

    def push(self, chunk: Chunk) -> None:
        """Take over the actions of a new inference."""
        self._actions.extend(chunk[:, : self._n_action_steps].transpose(0, 1))

    def pop(self) -> Action:
        """The action of this control step."""
        return self._actions.popleft()


class TemporalEnsemble:
    """The weighted mean of every inference's action for a control step (Zhao et al. 2023, alg. 2).

    The i-th oldest prediction has weight exp(-coefficient * i). Kept as a running mean, in
    LeRobot's order of operations, so that rounding agrees with it.
    """

    def __init__(self, coefficient: float):
        self._coefficient = coefficient
        self._weights = self._cumulative = torch.ones(0)
        self._mean: Chunk | None = None
        self._count = torch.ones(0, 1, dtype=torch.long)

    @property
    def needs_chunk(self) -> bool:
        """Every control step runs the network."""
        return True

    def push(self, chunk: Chunk) -> None:
        """Blend a new inference into what earlier ones predicted for the same control steps."""
        length = chunk.shape[1]
        if self._mean is None:
            # At least LeRobot's float32; float64 actions keep their digits.
            precision = torch.promote_types(chunk.dtype, torch.float32)
            weights = torch.exp(-self._coefficient * torch.arange(length, dtype=precision))
            self._weights = weights.to(chunk.device)
            self._cumulative = torch.cumsum(weights, 0).to(chunk.device)
            self._mean = chunk.clone()
            self._count = torch.ones(length, 1, dtype=torch.long, device=chunk.device)
            return
        mean = self._mean * self._cumulative[self._count - 1]
        mean = (mean + chunk[:, :-1] * self._weights[self._count]) / self._cumulative[self._count]
        self._mean = torch.cat([mean, chunk[:, -1:]], 1)
        count = (self._count + 1).clamp(max=length)
        self._count = torch.cat([count, torch.ones_like(count[-1:])])

    def pop(self) -> Action:
        """The ensembled action of this control step."""
        assert self._mean is not None
        action, self._mean, self._count = self._mean[:, 0], self._mean[:, 1:], self._count[1:]
        return action


def new_queue(config: ACTConfig) -> ActionQueue | TemporalEnsemble:
    """An empty queue of the kind that the policy's configuration asks for."""
    if config.temporal_ensemble_coeff is None:
        return ActionQueue(config.n_action_steps)
    return TemporalEnsemble(config.temporal_ensemble_coeff)
