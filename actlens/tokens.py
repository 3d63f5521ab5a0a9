"""The encoder's tokens by name, by index, and by the pixels they stand for."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actlens.config import ACTConfig
from actlens.errors import HookNameError

if TYPE_CHECKING:
    import pandas as pd

_PIXEL_TOKEN = re.compile(r"(?P<camera>\w+)\[(?P<row>\d+)\s*,\s*(?P<col>\d+)\]")


@dataclass(frozen=True)
class PixelRect:
    """The image region that a pixel token's cell covers, in pixels; `bottom` and `right` exclusive.

    The token's receptive field is larger: this is its cell in the stride-32 grid.
    """

    camera: str
    top: int
    left: int
    bottom: int
    right: int


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
        self.camera(camera)
        return next(self.config.grid(c) for c in self.config.cameras if c.name == camera)

    def index(self, address: str) -> int | slice:
        """The index of `latent`, `state`, `top[3,7]`, or the slice of a whole camera (`top`).

        Raises:
            HookNameError: if the address names no token; row and column bounds are given.
        """
        if address in self._by_name:
            return self._by_name[address]
        if address in self._groups:
            return self._groups[address]
        if found := _PIXEL_TOKEN.fullmatch(address.strip()):
            rows, cols = self.grid(found["camera"])
            row, col = int(found["row"]), int(found["col"])
            if row < rows and col < cols:
                return self._groups[found["camera"]].start + row * cols + col
            raise HookNameError(
                f"{address!r} lies outside the {rows}x{cols} token grid of {found['camera']}."
            )
        known = [*self.names[: self.config.n_vector_tokens]]
        known += [f"{camera}[row,col]" for camera in self._groups]
        raise HookNameError(f"{address!r} is not a token: use {', '.join(known)}.")

    def pixels(self, index: int) -> PixelRect | None:
        """The cell of the camera image that a pixel token covers; None for other tokens."""
        token = self.tokens[index]
        if token.camera is None or token.row is None or token.col is None:
            return None
        camera = next(c for c in self.config.cameras if c.name == token.camera)
        stride = 16 if self.config.dilation else 32
        top, left = token.row * stride, token.col * stride
        return PixelRect(
            token.camera,
            top,
            left,
            min(top + stride, camera.height),
            min(left + stride, camera.width),
        )

    def at_pixel(self, camera: str, y: float, x: float) -> int:
        """The index of the token whose cell contains the pixel (y down, x right)."""
        _, cols = self.grid(camera)
        size = next(c for c in self.config.cameras if c.name == camera)
        if not (0 <= y < size.height and 0 <= x < size.width):
            raise HookNameError(
                f"Pixel ({y:g}, {x:g}) lies outside camera {camera!r}, "
                f"whose images are {size.height}x{size.width}."
            )
        stride = 16 if self.config.dilation else 32
        return self._groups[camera].start + int(y // stride) * cols + int(x // stride)

    def frame(self) -> "pd.DataFrame":
        """One row per token: index, name, camera, row, col (missing where not a pixel)."""
        import pandas as pd  # not with actlens: it takes as long to import as the rest together

        frame = pd.DataFrame([vars(token) for token in self.tokens])
        return frame.astype({"row": "Int64", "col": "Int64"})
