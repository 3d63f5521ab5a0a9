"""What training made of a part: weights that can be put into the policy and taken out again."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.parts import Part
from actlens.model.act import HookedACT


@dataclass(frozen=True)
class TunedPart:
    """A part's weights after training; everything else is as it was."""

    part: Part
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    n_free: int
    """Numbers that were trained."""
    rate: float
    """The step size that was used, as in `Recipe.rates`; NaN if nothing was trained."""

    @property
    def relative_norm(self) -> float:
        """|W' - W| / |W| over the whole part, Frobenius."""
        squares = lambda tensors: sum(float(x.double().square().sum()) for x in tensors)
        moved = squares(self.after[name] - self.before[name] for name in self.before)
        return (moved / squares(self.before.values())) ** 0.5

    @contextmanager
    def applied(self, model: HookedACT) -> Generator[HookedACT]:
        """The policy with these weights for the length of a `with` block; every bit is restored.

        Raises:
            FinetuningError: if the policy does not have the weights that were trained from.
        """
        present = dict(model.named_parameters())
        for name, weight in self.before.items():
            if name not in present or not torch.equal(present[name].detach().to(weight), weight):
                raise FinetuningError(
                    f"{name} is not what this was trained from: put it into the policy it was "
                    "trained in, without other changes."
                )
        try:
            _write(present, self.after)
            yield model
        finally:
            _write(present, self.before)

    def policy(self, model: HookedACT) -> HookedACT:
        """A policy of its own with these weights; `save_pretrained` writes it for LeRobot.

        Raises:
            FinetuningError: as `applied`.
            CheckpointError: if the model was not loaded from a checkpoint.
        """
        with self.applied(model):
            checkpoint = model.to_checkpoint()
        like = model.action_head.weight
        return HookedACT.from_checkpoint(checkpoint, device=like.device, dtype=like.dtype)


@torch.no_grad()
def _write(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
