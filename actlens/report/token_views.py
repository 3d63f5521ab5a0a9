"""Values of a policy's tokens as maps over its cameras, and as bars where they are no pixels."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from actlens.page import Bars, View, jpeg
from actlens.scene import Scene
from actlens.tokens import TokenMap


def token_views(
    tokens: TokenMap,
    values: Float[np.ndarray, "*axes token"],
    scenes: Sequence[Scene],
    *,
    along: tuple[str, ...] = (),
    names: Callable[[str], str] = str,
) -> tuple[tuple[View, ...], Bars]:
    """A view of every camera, and the tokens that are none of a camera's.

    Args:
        values: of all tokens, in their order.
        scenes: whose pictures are shown: one, or one for each combination of the axes in `along`.
        names: what a token that is no pixel is called.
    """
    views = []
    for camera in tokens.config.cameras:
        rows, cols = tokens.grid(camera.name)
        cells = tokens.camera(camera.name)
        views.append(
            View(
                camera.name,
                values[..., cells].reshape(*values.shape[:-1], rows, cols),
                tuple(jpeg(scene.picture(camera.key)) for scene in scenes),
                along=along,
                reach=(rows * tokens.stride / camera.height, cols * tokens.stride / camera.width),
                first_token=cells.start,
            )
        )
    n = tokens.config.n_vector_tokens
    return tuple(views), Bars(tuple(map(names, tokens.names[:n])), values[..., :n])
