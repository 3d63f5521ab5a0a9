"""The statistics LeRobot stores beside a dataset: moments, extremes and quantiles per channel."""

from collections.abc import Iterable

import numpy as np

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)

Statistics = dict[str, np.ndarray]
"""`mean`, `std`, `min`, `max`, `q01` … `q99` per component, and `count` of frames, `(1,)`."""


def of_vectors(values: np.ndarray) -> Statistics:
    """Statistics over time of a column, `(time, component)` or `(time,)`, in its own units."""
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return {
        "min": columns.min(axis=0),
        "max": columns.max(axis=0),
        "mean": columns.mean(axis=0),
        "std": columns.std(axis=0),
        "count": np.array([len(columns)]),
        **{_name(q): np.quantile(columns, q, axis=0) for q in QUANTILES},
    }


def histogram(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """How many pixels have each value 0..255 in each channel, int64 `(3, 256)`."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for picture in pictures:
        for channel in range(3):
            counts[channel] += np.bincount(picture[..., channel].ravel(), minlength=256)
    return counts


def of_histogram(counts: np.ndarray, frames: int) -> Statistics:
    """Statistics of pixel values scaled to 0..1, `(3, 1, 1)` each, from a `histogram`."""
    levels = np.arange(256) / 255.0
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    variance = counts @ levels**2 / total - mean**2
    present = [levels[channel > 0] for channel in counts]
    cumulative = np.cumsum(counts, axis=1)
    found = {
        "min": np.array([values[0] for values in present]),
        "max": np.array([values[-1] for values in present]),
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0.0)),
        **{
            _name(q): np.array(
                [
                    levels[np.searchsorted(row, q * (n - 1), side="right")]
                    for row, n in zip(cumulative, total, strict=True)
                ]
            )
            for q in QUANTILES
        },
    }
    shaped = {name: value.reshape(3, 1, 1) for name, value in found.items()}
    return {**shaped, "count": np.array([frames])}


def _name(quantile: float) -> str:
    return f"q{round(quantile * 100):02d}"
