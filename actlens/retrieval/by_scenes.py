"""The function axis as tables, for several sets of unseen scenes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from actlens.retrieval.function_axis import FunctionAxis
from actlens.retrieval.generalisation import generalisation_frame
from actlens.retrieval.jackknife import Undefined, Value, bounds_of
from actlens.retrieval.snapping import snap_frame

if TYPE_CHECKING:
    import pandas as pd


def function_frames(axes: Mapping[str, FunctionAxis]) -> dict[str, "pd.DataFrame"]:
    """`generalisation`, `snap` and `similarity`, each with a column `scenes`.

    Args:
        axes: by the name of the scenes.
    """
    import pandas as pd

    together = lambda tables: pd.concat(tables, ignore_index=True)
    first = lambda table, name: table.assign(scenes=name)[["scenes", *table.columns]]
    return {
        "generalisation": together(
            [first(generalisation_frame(axis.indices), name) for name, axis in axes.items()]
        ),
        "snap": together([first(snap_frame(axis.snaps), name) for name, axis in axes.items()]),
        "similarity": pd.DataFrame(
            [
                {"scenes": name, "statistic": statistic, **_columns(value)}
                for name, axis in axes.items()
                for statistic, value in _statistics(axis).items()
            ]
        ),
    }


def _statistics(axis: FunctionAxis) -> dict[str, Value]:
    found = axis.similarity
    return {
        "S of the policy": found.policy,
        "S of the expert": found.expert,
        "S, policy - expert": found.excess,
        "novelty": found.novelty,
        "growth of the policy's error": axis.growth_of_policy,
        "growth of retrieval's error": axis.growth_of_retrieval,
    }


def _columns(found: Value) -> dict[str, object]:
    value, low, high = (np.nan,) * 3 if isinstance(found, Undefined) else bounds_of(found)
    reason = found.reason if isinstance(found, Undefined) else ""
    return {"value": value, "low": low, "high": high, "undefined": reason}
