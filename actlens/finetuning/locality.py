"""Did training the MLP change few neurons, as one writes new entries, or many a little?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from actlens.finetuning.kept import KeptScenes
from actlens.finetuning.parts import last_mlp
from actlens.finetuning.rank_one import coefficients
from actlens.finetuning.scoring import Errors, errors, joined
from actlens.finetuning.tuned import TunedPart
from actlens.kinematics import Arm
from actlens.model.act import HookedACT
from actlens.statistics import Interval, pooled_ratio


@dataclass(frozen=True)
class Locality:
    """How much of what training gained is there if only some neurons keep their change.

    0 neurons: the output bias alone keeps its change.
    """

    neurons: tuple[int, ...]
    """How many keep theirs."""
    by_effect: tuple[Interval, ...]
    """Those that change the MLP's output most where it was trained: share of the cut of the error,
    on episodes that were not trained on; in the last measure (mm if the arm is known)."""
    at_random: tuple[Interval, ...]
    """As many drawn at random."""

    def needed(self, share: float) -> int | None:
        """The fewest of these that keep a share of the cut; None if none of them does."""
        for n, found in zip(self.neurons, self.by_effect, strict=True):
            if float(found.estimate) >= share:
                return n
        return None


def locality(
    model: HookedACT,
    trained: Sequence[tuple[KeptScenes, KeptScenes, TunedPart]],
    arm: Arm | None,
    *,
    seed: int = 0,
) -> Locality:
    """Of trainings of the last decoder MLP as a whole.

    Args:
        trained: what was trained on, other scenes to measure on, and the weights.
    """
    sizes = _sizes(model.config.d_mlp)
    before, after = [], []
    kept: dict[tuple[str, int], list[Errors]] = {}
    rng = np.random.default_rng(seed)
    for train, test, tuned in trained:
        orders = {
            "effect": _by_effect(model, train, tuned),
            "random": rng.permutation(model.config.d_mlp),
        }
        before.append(errors(model, test, replace(tuned, after=tuned.before), arm))
        after.append(errors(model, test, tuned, arm))
        for name, order in orders.items():
            for n in sizes:
                part = _keeping(model, tuned, order[:n])
                kept.setdefault((name, n), []).append(errors(model, test, part, arm))
    start, end = joined(before), joined(after)

    def share(name: str, n: int) -> Interval:
        gained = start.sums[-1] - joined(kept[name, n]).sums[-1]
        return pooled_ratio(gained, start.sums[-1] - end.sums[-1], clusters=start.episodes)

    return Locality(
        sizes,
        tuple(share("effect", n) for n in sizes),
        tuple(share("random", n) for n in sizes),
    )


def _sizes(n_neurons: int) -> tuple[int, ...]:
    """0, then doubling."""
    doubled = [2**i for i in range(3, 20) if 2**i < n_neurons]
    return (0, *doubled, n_neurons)


@torch.no_grad()
def _by_effect(model: HookedACT, kept: KeptScenes, tuned: TunedPart) -> Int[np.ndarray, " neuron"]:
    """Neurons by the mean length of the change of what they write, the largest first."""
    before = _written(model, kept, tuned.before)
    after = _written(model, kept, tuned.after)
    (h, v), (g, w) = before, after
    # |g w - h v|^2, summed over scenes and positions, without writing all of it down.
    squares = (
        g.square().sum(0) * w.square().sum(0)
        - 2 * (g * h).sum(0) * (v * w).sum(0)
        + h.square().sum(0) * v.square().sum(0)
    )
    return squares.argsort(descending=True).cpu().numpy()


def _written(
    model: HookedACT, kept: KeptScenes, weights: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "key neuron"], Float[Tensor, "d_model neuron"]]:
    """Coefficients at demonstrated positions, and values."""
    found = functional_call(_Coefficients(model), _within(weights), (kept,))
    return found[kept.counted].double(), weights[last_mlp(model).matrix].double()


class _Coefficients(torch.nn.Module):
    def __init__(self, model: HookedACT):
        super().__init__()
        self.model = model

    def forward(self, kept: KeptScenes) -> Tensor:
        return coefficients(self.model, kept)


def _within(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in weights.items()}


def _keeping(model: HookedACT, tuned: TunedPart, neurons: Int[np.ndarray, " chosen"]) -> TunedPart:
    """The training with the change of some neurons alone, and that of the output's bias."""
    block = f"{last_mlp(model).block}.mlp."
    at = torch.from_numpy(np.ascontiguousarray(neurons))
    after = {name: value.clone() for name, value in tuned.before.items()}
    for name in ("linear1.weight", "linear1.bias"):
        after[block + name][at] = tuned.after[block + name][at]
    after[block + "linear2.weight"][:, at] = tuned.after[block + "linear2.weight"][:, at]
    after[block + "linear2.bias"] = tuned.after[block + "linear2.bias"]
    return replace(tuned, after=after)
