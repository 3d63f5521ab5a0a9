"""What an intervention puts in the place of an activation, or of part of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.errors import InterventionError
from actlens.hooks import HookPoint

Donors = Mapping[str, Mapping[str, Tensor]]
"""Activations by hook name, of each donor by its role: `{"clean": run, "mean": run}`."""


@dataclass(frozen=True)
class Moment:
    """Where a source is asked for its value: of which activation, with which donors, when."""

    point: HookPoint
    index: tuple[Any, ...]
    donors: Donors = field(default_factory=dict)
    inference_step: int = 0

    def donated(self, role: str, like: Tensor) -> Tensor:
        """The donor's value of the same part.

        Raises:
            InterventionError: if there is no such donor, or it lacks the activation.
        """
        if role not in self.donors:
            known = ", ".join(self.donors) or "none"
            raise InterventionError(f"There is no donor {role!r}; this run was given: {known}.")
        if self.point.name not in self.donors[role]:
            raise InterventionError(f"The donor {role!r} holds no {self.point.name}.")
        activation = self.donors[role][self.point.name]
        if activation.ndim > len(self.point.axes):  # positions: kept with a batch axis of one
            activation = activation[0]
        return activation[self.index].to(like).expand_as(like)


@dataclass(frozen=True)
class FromScene:
    """Another run's activation: a clean or corrupt scene's, a dataset's mean, a resampled scene's.

    `donor` is the role under which the run is handed in; interchange interventions (Geiger et al.
    2021), mean and resample ablation are this source with different donors.
    """

    donor: str = "clean"

    def value(self, part: Tensor, moment: Moment) -> Tensor:
        """The donor's value."""
        return moment.donated(self.donor, part)


@dataclass(frozen=True)
class Constant:
    """One number everywhere: 0 ablates, minus infinity on attention scores knocks edges out."""

    number: float = 0.0

    def value(self, part: Tensor, moment: Moment) -> Tensor:
        """The number, in the part's shape."""
        return torch.full_like(part, self.number)


@dataclass(frozen=True)
class GaussianNoise:
    """The activation plus Gaussian noise: the corruption of causal tracing (Meng et al. 2022, 2.1).

    `std` is in the activation's units; Meng et al. take three times its spread. Every row of a
    batch gets the same draw; every inference step of a rollout its own.
    """

    std: float
    seed: int = 0

    def value(self, part: Tensor, moment: Moment) -> Tensor:
        """The part with noise added."""
        generator = torch.Generator().manual_seed((self.seed << 20) + moment.inference_step)
        # Drawn on the CPU in float64: the same on every device and in every precision.
        batched = moment.point.axes[:1] == ("batch",) and not isinstance(moment.index[0], int)
        shape = (1, *part.shape[1:]) if batched else part.shape
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return part + self.std * noise.to(part)


@dataclass(frozen=True)
class Steering:
    """The activation plus `scale` times a vector along its last axis: steering."""

    vector: tuple[float, ...]
    scale: float = 1.0

    def value(self, part: Tensor, moment: Moment) -> Tensor:
        """The part, moved along the direction."""
        return part + self.scale * _along_last_axis(self.vector, part, moment)


@dataclass(frozen=True)
class Subspace:
    """The donor's component in a linear subspace, the run's own outside of it.

    x + (x_donor - x) B^T B with orthonormal rows B: distributed interchange (Geiger et al. 2023).
    Its control is a random subspace of the same dimension (`random_subspace`); what such a patch
    does is not what the subspace carries where it also touches dormant directions (Makelov et al.
    2023).
    """

    basis: tuple[tuple[float, ...], ...]
    donor: str = "clean"

    def value(self, part: Tensor, moment: Moment) -> Tensor:
        """The part with its component in the subspace exchanged."""
        rows = torch.stack([_along_last_axis(row, part, moment) for row in self.basis])
        gram = rows @ rows.T
        if not torch.allclose(gram, torch.eye(len(rows)).to(gram), atol=1e-4):
            raise InterventionError("The basis of a subspace must have orthonormal rows.")
        return part + (moment.donated(self.donor, part) - part) @ rows.T @ rows


@dataclass(frozen=True)
class Call:
    """Whatever a function makes of the part: `fn(part) -> replacement`. It cannot be saved."""

    fn: Callable[[Tensor], Tensor]

    def value(self, part: Tensor, moment: Moment) -> Tensor:
        """The function's value.

        Raises:
            InterventionError: if it is no tensor of the part's shape.
        """
        made = self.fn(part.clone())
        if not isinstance(made, Tensor) or made.shape != part.shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InterventionError(
                f"The function for {moment.point.name} returned {got}; the part it replaces has "
                f"shape {tuple(part.shape)}."
            )
        return made.to(part)


Source = FromScene | Constant | GaussianNoise | Steering | Subspace | Call
SAVEABLE: tuple[type, ...] = (FromScene, Constant, GaussianNoise, Steering, Subspace)


def random_subspace(width: int, dimension: int, seed: int = 0) -> Float[Tensor, "dimension width"]:
    """Orthonormal rows of a random subspace: the control of every subspace patch."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(width, dimension, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(noise)[0].T


def _along_last_axis(vector: tuple[float, ...], part: Tensor, moment: Moment) -> Tensor:
    if isinstance(moment.index[-1], int):
        raise InterventionError(
            f"A direction lies along the last axis of {moment.point.name} "
            f"({moment.point.axes[-1]}), of which one entry is selected: give it as a set, "
            f"{moment.point.axes[-1]}={{{moment.index[-1]}}}."
        )
    if len(vector) != part.shape[-1]:
        raise InterventionError(
            f"The direction has {len(vector)} entries; the part of {moment.point.name} that it is "
            f"added to has {part.shape[-1]} on its last axis ({moment.point.axes[-1]})."
        )
    return torch.tensor(vector, dtype=torch.float64).to(part)
