"""Camera pictures under maps of values, and what can be chosen above them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.errors import ConfigError


@dataclass(frozen=True)
class Axis:
    """One thing that can be chosen above a map.

    Ordered ones (depth, chunk position, frame) are sliders, others (head, direction) are lists.
    """

    name: str
    labels: tuple[str, ...]
    ordered: bool = True
    start: int = 0
    """What is shown first."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < len(self.labels):
            raise ConfigError(
                f"Axis {self.name!r} starts at {self.start} of {len(self.labels)} labels."
            )


@dataclass(frozen=True)
class View:
    """One camera: its pictures, and a value for each token of its grid."""

    name: str
    values: Float[np.ndarray, "*axes row col"]
    """One leading dimension for each axis of the overlays, of its length, or 1 where the values do
    not depend on it. NaN is left blank."""
    pictures: tuple[bytes, ...]
    """PNG or JPEG files: one, or one for each combination of the axes in `along`, the last axis
    fastest."""
    along: tuple[str, ...] = ()
    """Names of the axes that the pictures follow."""
    reach: tuple[float, float] = (1.0, 1.0)
    """Height and width of the grid in heights and widths of the picture: above 1 where the last
    tokens' cells leave it."""
    first_token: int | None = None
    """Index of the first cell's token, shown with its name."""


@dataclass(frozen=True)
class Bars:
    """Values of tokens that are no pixels, shown beside the pictures."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "*axes bar"]
    """Leading dimensions as in a `View`."""


@dataclass(frozen=True)
class Overlays:
    """Camera pictures under a map of values, with a slider or a list for every axis.

    One scale of colours for everything that can be chosen, so that maps can be compared; the value
    under the pointer is shown with its token's name.

    Raises:
        ConfigError: if values or pictures do not fit the axes.
    """

    title: str
    views: tuple[View, ...]
    axes: tuple[Axis, ...] = ()
    bars: Bars | None = None
    unit: str = ""
    signed: bool = False
    """Colours diverge from zero (PuOr) instead of starting there (magma)."""
    limit: float | None = None
    """Value of the strongest colour; the largest of the views' if not given."""
    caption: str = ""

    def __post_init__(self) -> None:
        lengths = self.lengths
        if len(lengths) != len(self.axes):
            raise ConfigError(f"Two axes of {self.title!r} have one name: {sorted(lengths)}.")
        if not self.views:
            raise ConfigError(f"{self.title!r} has no camera to draw over.")
        for view in self.views:
            _check_values(view.name, view.values, lengths, own=2)
            _check_pictures(view, lengths)
        if self.bars is not None:
            _check_values("bars", self.bars.values, lengths, own=1)
            if self.bars.values.shape[-1] != len(self.bars.names):
                raise ConfigError(
                    f"{self.bars.values.shape[-1]} bars have {len(self.bars.names)} names."
                )

    @property
    def lengths(self) -> dict[str, int]:
        """How many labels each axis has, by its name."""
        return {axis.name: len(axis.labels) for axis in self.axes}


def _check_values(name: str, values: np.ndarray, lengths: Mapping[str, int], *, own: int) -> None:
    leading = values.shape[: values.ndim - own]
    fits = len(leading) == len(lengths) and all(
        n in (1, wanted) for n, wanted in zip(leading, lengths.values(), strict=True)
    )
    if not fits or not values.size:
        raise ConfigError(
            f"Values of {name!r} have shape {values.shape}: the axes {dict(lengths)} ask for "
            f"{len(lengths)} leading dimensions of these lengths or 1, and {own} more."
        )


def _check_pictures(view: View, lengths: Mapping[str, int]) -> None:
    if unknown := set(view.along) - lengths.keys():
        raise ConfigError(
            f"Pictures of {view.name!r} follow {sorted(unknown)}; the axes are {list(lengths)}."
        )
    wanted = int(np.prod([lengths[name] for name in view.along], dtype=int))
    if len(view.pictures) != wanted:
        raise ConfigError(
            f"{view.name!r} has {len(view.pictures)} pictures; along {list(view.along)} it takes "
            f"{wanted}."
        )
