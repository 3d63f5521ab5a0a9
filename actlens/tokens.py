"""The encoder's tokens by name, by index, and by the pixels they stand for."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from actlens.config import ACTConfig, Camera
from actlens.errors import HookNameError

if TYPE_CHECKING:
    import pandas as pd

_CELLS = r"\d+|\d*\s*:\s*\d*"
_PIXEL_TOKENS = re.compile(rf"(?P<camera>\w+)\[\s*(?P<rows>{_CELLS})\s*,\s*(?P<cols>{_CELLS})\s*\]")


@dataclass(frozen=True)
class PixelRect:
    """A rectangle of a camera's image, in pixels; `bottom` and `right` exclusive.

    Where it is that of a pixel token: the token's receptive field is larger, this is its cell in
    the grid.
    """

    camera: str
    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class _Cells:
    """A rectangle of one camera's tokens."""

    camera: str
    rows: range
    cols: range


@dataclass(frozen=True)
class Token:
    """One encoder token. `camera`, `row` and `col` are None for latent, state and env_state."""

    index: int
    name: str
    camera: str | None = None
    row: int | None = None
    col: int | None = None


class TokenMap:
    """Names <-> indices <-> pixel rectangles of the encoder's tokens.

    The order is LeRobot's since March 2025: latent, state, env_state (where declared), then camera
    by camera in the order of the config, each row by row.

    Cells tile the image from its top left corner, as attention viewers draw them. What a token sees
    is wider than its cell, and is centred near the cell's *first* pixel: the paddings of a ResNet's
    convolutions put the centre of token i at pixel stride * i. Read a map as up to half a cell too
    low and too far right.
    """

    def __init__(self, config: ACTConfig):
        self.config = config
        vectors = ["latent"]
        vectors += ["state"] if config.state_dim is not None else []
        vectors += ["env_state"] if config.env_state_dim is not None else []
        tokens = [Token(i, name) for i, name in enumerate(vectors)]
        self._groups: dict[str, slice] = {}
        for camera in config.cameras:
            rows, cols = config.grid(camera)
            start = len(tokens)
            tokens += [
                Token(start + r * cols + c, f"{camera.name}[{r},{c}]", camera.name, r, c)
                for r in range(rows)
                for c in range(cols)
            ]
            self._groups[camera.name] = slice(start, len(tokens))
        self.tokens: tuple[Token, ...] = tuple(tokens)
        self._by_name = {token.name: token.index for token in tokens}

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Token:
        return self.tokens[index]

    @property
    def names(self) -> tuple[str, ...]:
        """Every token's name, in order."""
        return tuple(token.name for token in self.tokens)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras' names, in token order."""
        return tuple(self._groups)

    def camera(self, name: str) -> slice:
        """The slice of token indices that belong to one camera.

        Raises:
            HookNameError: if there is no such camera.
        """
        try:
            return self._groups[name]
        except KeyError:
            raise HookNameError(
                f"There is no camera {name!r}; this policy has {', '.join(self._groups) or 'none'}."
            ) from None

    def grid(self, camera: str) -> tuple[int, int]:
        """Rows and columns of one camera's tokens."""
        return self.config.grid(self._config_of(camera))

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring tokens of a camera, and the side of a token's cell."""
        return 16 if self.config.dilation else 32

    def index(self, address: str) -> int | slice | tuple[int, ...]:
        """What `latent`, `state`, `top[3,7]`, `top` or `top[2:5, 3:6]` stands for.

        A token is its index, a whole camera a slice, a region of a camera its indices row by row.
        Rows and columns count from 0, spans leave out their end, `:` is all of them.

        Raises:
            HookNameError: if the address names no token; row and column bounds are given.
        """
        if address in self._by_name:
            return self._by_name[address]
        if address in self._groups:
            return self._groups[address]
        if cells := self._cells(address):
            indices = self._indices(cells)
            return indices if ":" in address else indices[0]
        known = [*self.names[: self.config.n_vector_tokens]]
        known += [f"{camera}[row,col]" for camera in self._groups]
        raise HookNameError(f"{address!r} is not a token: use {', '.join(known)}.")

    def rect(self, address: str) -> PixelRect:
        """The pixels of a camera (`top`), a region (`top[2:5, 3:6]`) or a token (`top[3,7]`).

        Raises:
            HookNameError: if the address names no part of a camera.
        """
        cells = self._cells(f"{address}[:,:]" if address in self._groups else address)
        if cells is None:
            known = ", ".join(f"{camera}[row,col]" for camera in self._groups) or "a camera"
            raise HookNameError(f"{address!r} is no part of an image: use {known}.")
        size, rows, cols = self._config_of(cells.camera), cells.rows, cells.cols
        return PixelRect(
            cells.camera,
            rows.start * self.stride,
            cols.start * self.stride,
            min(rows.stop * self.stride, size.height),
            min(cols.stop * self.stride, size.width),
        )

    def pixels(self, index: int) -> PixelRect | None:
        """The cell of the camera image that a pixel token covers; None for other tokens."""
        token = self.tokens[index]
        return None if token.camera is None else self.rect(token.name)

    def at_pixel(self, camera: str, y: float, x: float) -> int:
        """The index of the token whose cell contains the pixel (y down, x right)."""
        _, cols = self.grid(camera)
        size = self._config_of(camera)
        if not (0 <= y < size.height and 0 <= x < size.width):
            raise HookNameError(
                f"Pixel ({y:g}, {x:g}) lies outside camera {camera!r}, "
                f"whose images are {size.height}x{size.width}."
            )
        row, col = int(y // self.stride), int(x // self.stride)
        return self._groups[camera].start + row * cols + col

    def in_rect(self, rect: PixelRect) -> tuple[int, ...]:
        """The tokens whose cells a rectangle of the image touches, row by row.

        Raises:
            HookNameError: if there is no such camera, or the rectangle is empty or leaves its
                image.
        """
        size = self._config_of(rect.camera)
        inside = (
            0 <= rect.top < rect.bottom <= size.height and 0 <= rect.left < rect.right <= size.width
        )
        if not inside:
            raise HookNameError(
                f"{rect} is empty or leaves the image of {size.height}x{size.width} pixels."
            )
        rows = range(rect.top // self.stride, -(-rect.bottom // self.stride))
        cols = range(rect.left // self.stride, -(-rect.right // self.stride))
        return self._indices(_Cells(rect.camera, rows, cols))

    def in_mask(
        self, camera: str, mask: Bool[Tensor, "row col"] | Bool[np.ndarray, "row col"]
    ) -> tuple[int, ...]:
        """The tokens in a mask, row by row.

        Args:
            mask: of the image's size, and then tokens are in it that have a pixel in it; or of the
                size of the camera's token grid.

        Raises:
            HookNameError: if the mask has another size, is not boolean, or holds no token.
        """
        size, (rows, cols) = self._config_of(camera), self.grid(camera)
        cells = torch.as_tensor(mask)
        if cells.dtype != torch.bool:
            raise HookNameError(f"A mask is boolean; this one is {cells.dtype}: compare it first.")
        if cells.shape == (size.height, size.width):
            padded = cells.new_zeros(rows * self.stride, cols * self.stride)
            padded[: size.height, : size.width] = cells
            cells = padded.reshape(rows, self.stride, cols, self.stride).any(3).any(1)
        if cells.shape != (rows, cols):
            raise HookNameError(
                f"The mask has shape {tuple(cells.shape)}; camera {camera!r} has images of "
                f"{size.height}x{size.width} and {rows}x{cols} tokens."
            )
        if not cells.any():
            raise HookNameError(f"The mask of camera {camera!r} holds no token.")
        start = self._groups[camera].start
        return tuple(start + int(i) for i in cells.flatten().nonzero())

    def _config_of(self, camera: str) -> Camera:
        self.camera(camera)
        return next(c for c in self.config.cameras if c.name == camera)

    def _cells(self, address: str) -> _Cells | None:
        """The region that an address such as `top[2:5, 3:6]` or `top[3,7]` names, if it is one."""
        found = _PIXEL_TOKENS.fullmatch(address.strip())
        if found is None:
            return None
        sizes = self.grid(found["camera"])
        rows, cols = (
            _span(text, size)
            for text, size in zip((found["rows"], found["cols"]), sizes, strict=True)
        )
        if rows is None or cols is None:
            raise HookNameError(
                f"{address!r} lies outside the {sizes[0]}x{sizes[1]} token grid of "
                f"{found['camera']}, or selects nothing of it."
            )
        return _Cells(found["camera"], rows, cols)

    def _indices(self, cells: _Cells) -> tuple[int, ...]:
        start, (_, width) = self._groups[cells.camera].start, self.grid(cells.camera)
        return tuple(start + row * width + col for row in cells.rows for col in cells.cols)

    def frame(self) -> "pd.DataFrame":
        """One row per token: index, name, camera, row, col (missing where not a pixel)."""
        import pandas as pd  # not with actlens: it takes as long to import as the rest together

        frame = pd.DataFrame([vars(token) for token in self.tokens])
        return frame.astype({"row": "Int64", "col": "Int64"})


def _span(text: str, size: int) -> range | None:
    """The rows (or columns) that a number or span names; None if there are no such."""
    first, colon, last = (part.strip() for part in text.partition(":"))
    start = int(first or 0)
    stop = start + 1 if not colon else int(last or size)
    return range(start, stop) if start < stop <= size else None
