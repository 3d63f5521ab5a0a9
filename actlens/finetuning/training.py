"""Training one part on kept scenes, and choosing the step size on episodes that are put aside."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.kept import Behind, KeptScenes
from actlens.finetuning.parts import Part
from actlens.finetuning.tuned import TunedPart
from actlens.finetuning.updates import Space, Update
from actlens.model.act import HookedACT


@dataclass(frozen=True)
class Recipe:
    """How every part is trained: Adam on the masked L1 loss that ACT is trained with, without
    dropout and with the latent at zero, as at inference. No early stopping."""

    steps: int = 100
    batch_size: int = 8
    """Scenes of the new places."""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Step sizes to choose from: by how much of the part's own norm Adam moves it in a first step.
    The choice falls on episodes put aside from the training ones."""
    rehearsal: float = 0.0
    """Scenes of old demonstrations in a batch, as a share of the new ones."""
    put_aside: float = 1 / 3
    """Of the training episodes, while the step size is chosen."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.rates or min(self.rates) <= 0:
            raise FinetuningError(f"{self}: steps, batch size and rates must be positive.")
        if self.rehearsal < 0 or not 0 < self.put_aside < 1:
            raise FinetuningError(f"{self}: give rehearsal >= 0 and put_aside between 0 and 1.")


@dataclass(frozen=True)
class Training:
    """One part of one policy, in one way of changing it."""

    model: HookedACT
    part: Part
    update: Update
    recipe: Recipe

    def fit(self, new: KeptScenes, rate: float, old: KeptScenes | None = None) -> TunedPart:
        """Train on some scenes.

        Args:
            old: what is rehearsed, if the recipe says so.

        Raises:
            FinetuningError: if rehearsal is asked for and there is nothing to rehearse.
        """
        recipe, before = self.recipe, self.part.weights(self.model)
        n_old = round(recipe.rehearsal * recipe.batch_size)
        if n_old and old is None:
            raise FinetuningError("Rehearsal needs scenes of old demonstrations.")
        behind, space = Behind(self.model, self.part), self.update.on(before)
        norm = math.sqrt(sum(float(x.double().square().sum()) for x in before.values()))
        free = torch.zeros(space.n_free).to(self.model.action_head.weight).requires_grad_()
        adam = torch.optim.Adam([free], fused=True)
        rng = np.random.default_rng(recipe.seed)
        batches = [(new, 1.0, _shuffled(len(new), recipe.batch_size, rng))]
        if n_old and old is not None:
            batches.append((old, recipe.rehearsal, _shuffled(len(old), n_old, rng)))
        for step in range(recipe.steps):
            for group in adam.param_groups:
                group["lr"] = rate * norm / math.sqrt(space.n_free) * _schedule(step, recipe.steps)
            with torch.enable_grad():
                weights = changed(before, space, free)
                total = sum(w * loss(behind, weights, kept.at(take())) for kept, w, take in batches)
            assert isinstance(total, torch.Tensor)
            (free.grad,) = torch.autograd.grad(total, free)
            adam.step()
        after = changed(before, space, free.detach())
        # A copy: the policy's own tensors may be written to later.
        own = {name: value.clone() for name, value in before.items()}
        return TunedPart(self.part, own, after, space.n_free, rate)

    def choose_rate(self, new: KeptScenes, old: KeptScenes | None = None) -> float:
        """The step size with the least loss on episodes put aside from these.

        Raises:
            FinetuningError: if there is only one scene.
        """
        if len(self.recipe.rates) == 1:
            return self.recipe.rates[0]
        fitted, aside = split(new, self.recipe.put_aside, self.recipe.seed)
        losses = {
            rate: validation_loss(self.model, self.fit(fitted, rate, old), aside)
            for rate in self.recipe.rates
        }
        return min(losses, key=lambda rate: losses[rate])


def changed(
    before: dict[str, Tensor], space: Space, free: Float[Tensor, " free"]
) -> dict[str, Tensor]:
    """The weights with a change, tensor by tensor."""
    change, at, after = space.changes(free), 0, {}
    for name, weight in before.items():
        after[name] = weight + change[at : at + weight.numel()].view_as(weight)
        at += weight.numel()
    return after


def loss(behind: Behind, weights: dict[str, Tensor], kept: KeptScenes) -> Float[Tensor, ""]:
    """L1, normalised; padding counts as zero, as in LeRobot's ACT."""
    error = (behind.with_weights(weights, kept.activations) - kept.target).abs()
    return (error * kept.counted[..., None]).mean()


@torch.no_grad()
def validation_loss(model: HookedACT, tuned: TunedPart, kept: KeptScenes, batch: int = 32) -> float:
    """The loss over all of some scenes."""
    behind = Behind(model, tuned.part)
    sums = [
        float(loss(behind, dict(tuned.after), part)) * len(part) for part in kept.batches(batch)
    ]
    return sum(sums) / len(kept)


def split(kept: KeptScenes, share: float, seed: int) -> tuple[KeptScenes, KeptScenes]:
    """The rest, and a share of the episodes that is put aside; of a single one's scenes.

    Raises:
        FinetuningError: if there is only one scene.
    """
    units = kept.episodes if kept.n_episodes > 1 else np.arange(len(kept))
    names = np.unique(units)
    if len(names) < 2:
        raise FinetuningError("One scene cannot be split: give more, or a recipe with one rate.")
    n = min(max(1, round(share * len(names))), len(names) - 1)
    aside = np.isin(units, np.random.default_rng([seed, 1]).permutation(names)[:n])
    return kept.at(np.flatnonzero(~aside)), kept.at(np.flatnonzero(aside))


def _schedule(step: int, steps: int) -> float:
    """A short rise, then a cosine fall to a hundredth."""
    rise = min(1.0, (step + 1) / max(1, steps // 20))
    return rise * (0.505 + 0.495 * math.cos(math.pi * step / steps))


def _shuffled(n: int, size: int, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """Draws rows in shuffled epochs."""
    left = np.empty(0, np.int64)

    def take() -> np.ndarray:
        nonlocal left
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(n)])
        rows, left = left[:size], left[size:]
        return rows

    return take
