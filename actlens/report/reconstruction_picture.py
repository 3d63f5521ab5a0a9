"""Real scenes above what was drawn of them from each site."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from actlens.reconstruction.reading import REAL, SHOWN, Fitted
from actlens.reconstruction.result import MomentRead, Reconstruction
from actlens.report.tiles import GAP, Picture, above, beside, caption, framed, resized

_SIZE = 11
_SCALE = 2
_NAMES = {
    REAL: "the real pictures",
    "what can be drawn": "what can be drawn (ceiling)",
    "known scene state": "from the true state (ceiling)",
    "encoder's output": "from the encoder's output",
    "action vector": "from the action vector",
    "action vector, untrained": "from an untrained policy's action vector",
    "joint state": "from the joint state alone",
    "nearest fitted scene by action vector": "the nearest fitted scene by action vector",
    "mean": "the mean picture",
}


def reconstruction_grid(
    moment: MomentRead, fitted: Fitted, scenes: Sequence[int] | None = None
) -> Picture:
    """One row for each source, the real pictures first; one column for each kept scene.

    Args:
        scenes: which of the kept scenes; all if not given.
    """
    names = [name for name in SHOWN if any(one.source == name for one in moment.readings)]
    kept = moment.reading(REAL, fitted).drawn
    chosen = [scene for scene in kept if scenes is None or scene in scenes]
    sets = {int(s): name for name, some in moment.sets.items() for s in some}
    width = _tile(kept[chosen[0]]).shape[1]
    heads = [caption(width, [sets[s], moment.addresses[s].split()[-1]], size=_SIZE) for s in chosen]
    rows = [beside(*heads)]
    for name in names:
        drawn = moment.reading(name, fitted).drawn
        tiles = [_tile(drawn[scene]) for scene in chosen]
        wide = (width + GAP) * len(tiles) - GAP
        rows.append(above(caption(wide, [_NAMES.get(name, name)], size=_SIZE), beside(*tiles)))
    return framed(above(*rows, gap=2))


def save_reconstructions(result: Reconstruction, path: Path) -> bool:
    """One PNG of frame 0: by decoders of demonstrations, and beside it the same scenes by decoders
    taught at other unseen places.

    Returns:
        Whether there was anything to show.
    """
    from PIL import Image

    moment = result.moments[0]
    parts = []
    for fitted in dict.fromkeys(reading.fitted for reading in moment.readings):
        if moment.n_changed is None or not moment.reading(REAL, fitted).drawn:
            continue
        grid = reconstruction_grid(moment, fitted)
        words = f"{moment.moment}: decoders fitted on demonstrations"
        if fitted is Fitted.TAUGHT:
            words += " and on other unseen episodes"
        parts.append(above(caption(grid.shape[1], [words], size=_SIZE + 2), grid))
    if not parts:
        return False
    # A palette of its own colours takes a third of the space.
    picture = Image.fromarray(beside(*parts)).quantize(
        256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    return True


def _tile(pictures: Float[np.ndarray, "camera 3 h w"]) -> Picture:
    """All cameras side by side."""
    views = []
    for picture in pictures:
        pixels = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
        height, width = pixels.shape[:2]
        views.append(resized(pixels, _SCALE * height, _SCALE * width))
    return beside(*views, gap=2)
