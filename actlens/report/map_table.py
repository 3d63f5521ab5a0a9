"""The numbers behind a film of maps, as one table: a row a picture."""

import numpy as np
import pandas as pd

from actlens.report.map_film import MapFilm


def map_table(film: MapFilm) -> pd.DataFrame:
    """Frame, seconds, bars, the action (`predicted …`, `demonstrated …`), then every token."""
    frames = [one.frame for one in film.frames]
    columns: dict[str, np.ndarray | list] = {
        "frame": frames,
        "seconds": [frame / film.fps for frame in frames],
        "note": [one.note for one in film.frames],
    }
    for name in film.frames[0].bars:
        columns[name if name in film.tokens.names else f"group: {name}"] = [
            one.bars[name] for one in film.frames
        ]
    for index, joint in enumerate(film.joint_names):
        columns[f"predicted {joint}"] = [float(one.predicted[index]) for one in film.frames]
        columns[f"{film.recorded_words} {joint}"] = film.demonstrated[frames, index]
    values = np.stack([one.values for one in film.frames])
    for token in film.tokens.tokens:
        columns.setdefault(token.name, values[:, token.index])
    return pd.DataFrame(columns)
