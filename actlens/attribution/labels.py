"""What sites are called: hook point, unit, token, camera, row, column, head, neuron."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from actlens.attribution.cuts import Cut
from actlens.tokens import TokenMap

_ALWAYS = ("token", "query", "head", "neuron")


def site_labels(
    cuts: Sequence[Cut], tokens: TokenMap, sites: Int[np.ndarray, " chosen"] | None = None
) -> pd.DataFrame:
    """One row per site: where it lies, by number and by name, and its address.

    Args:
        sites: numbers among the sites of all cuts, in rising order; all if not given.
    """
    start, frames = 0, []
    for cut in cuts:
        if sites is None:
            numbers = np.arange(len(cut))
        else:
            numbers = sites[(sites >= start) & (sites < start + len(cut))] - start
        start += len(cut)
        if len(numbers):
            frames.append(_of_cut(cut, numbers, tokens))
    table = pd.concat(frames, ignore_index=True)
    axes = [*_ALWAYS, *dict.fromkeys(a for cut in cuts for a in cut.axes if a not in _ALWAYS)]
    table = table.reindex(
        columns=["hook", "unit", "depth", "address", "name", "camera", "row", "col", *axes]
    )
    return table.astype(dict.fromkeys(("row", "col", *axes), "Int64"))


def _of_cut(cut: Cut, numbers: np.ndarray, tokens: TokenMap) -> pd.DataFrame:
    entries = cut.entries(numbers)
    table = pd.DataFrame(
        {"hook": cut.hook, "unit": cut.unit, "depth": cut.depth}, range(len(numbers))
    )
    names = tokens.names
    words = [
        [names[i] if axis == "token" else f"{axis}={i}" for i in places]
        for axis, places in entries.items()
    ]
    selectors = [", ".join(parts) for parts in zip(*words, strict=True)] if words else [""]
    table["address"] = [f"{cut.hook}[{s}]" if s else cut.hook for s in selectors]
    for axis, places in entries.items():
        table[axis] = places
    if "token" in entries:
        chosen = [tokens[i] for i in entries["token"]]
        table["name"] = [token.name for token in chosen]
        for what in ("camera", "row", "col"):
            table[what] = [getattr(token, what) for token in chosen]
    return table
