"""AdamW on the L1 loss for several ends of decoders at once, each on draws of its own."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actlens.tails.stacked import Part, Tails

Draw = Callable[[], Int[Tensor, "run batch"]]
"""Gives the entries of the next step, by run."""


@dataclass(frozen=True)
class Training:
    """AdamW on the L1 loss, as ACT is trained."""

    steps: int
    lr: float
    weight_decay: float = 0.0
    one_cycle: bool = True
    """One rise and fall of the learning rate over all steps; constant if not."""
    part: Part = Part.END
    bf16: bool = False
    """Multiply the MLP's matrices in bfloat16; weights stay float32."""


def draws(pools: Bool[Tensor, "run entry"], batch_size: int, generator: torch.Generator) -> Draw:
    """Draws with replacement, for every run out of its own entries."""
    order = pools.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    sizes = pools.sum(1, keepdim=True)

    def draw() -> Int[Tensor, "run batch"]:
        uniform = torch.rand(len(pools), batch_size, generator=generator, dtype=torch.float64)
        return order.gather(1, (uniform * sizes).long())

    return draw


def fit(
    tails: Tails,
    x: Float[Tensor, "entry d_model"],
    actions: Float[Tensor, "entry joint"],
    draw: Draw,
    training: Training,
    *,
    stops: Collection[int] = (),
    watch: Callable[[int], None] = lambda step: None,
) -> None:
    """Train the tails in place.

    Args:
        x: cached vectors, shared by all runs; `actions` are normalised.
        draw: which entries every run sees in the next step.
        stops: after these numbers of steps `watch` is told the number; 0 is before the first.
    """
    weights = tails.of_part(training.part)
    for weight in weights:
        weight.requires_grad_()
    # Fused, it passes over the weights once. One run alone keeps the bits of torch's plain loop.
    optimizer = torch.optim.AdamW(
        weights, training.lr, weight_decay=training.weight_decay, fused=tails.n > 1
    )
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.steps)
        if training.one_cycle
        else None
    )
    stops = frozenset(stops)
    try:
        for step in range(training.steps + 1):
            if step in stops:
                watch(step)
            if step == training.steps:
                break
            drawn = draw()
            with torch.enable_grad():
                off = tails(x[drawn], bf16=training.bf16) - actions[drawn]
                # A mean for each run and their sum: no run's gradient depends on the others.
                loss = off.abs().mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    finally:
        for weight in weights:
            weight.requires_grad = False


def whiten(tails: Tails, inputs: Float[Tensor, "n d_model"], share: float) -> None:
    """Draw keys anew whose pre-activations have about unit variance, all directions taking part.

    Where neighbours differ by little, learning by heart is quick from there and hardly possible
    from torch's own start.

    Args:
        inputs: what the MLPs will read, float64.
        share: directions count down to this share of the largest variance.
    """
    mean = inputs.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(inputs.T))
    white = axes / variances.clamp(min=share * float(variances[-1])).sqrt()
    shape = (tails.shape.d_mlp, tails.shape.d_model)
    for run in range(tails.n):
        weight = torch.randn(shape, dtype=torch.float64).to(inputs) @ (white @ axes.T)
        weight /= len(mean) ** 0.5
        bias = 0.5 * torch.randn(len(weight)).to(inputs) - weight @ mean
        tails.weights["linear1.weight"][run] = weight
        tails.weights["linear1.bias"][run] = bias
