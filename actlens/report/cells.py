"""What tables of numbers share: how a number, an interval and a p value are written."""

import numpy as np
import pandas as pd


def number(value: float, form: str) -> str:
    """The number, or nothing where there is none."""
    return "" if np.isnan(value) else format(value, form)


def estimate(row: pd.Series, name: str, form: str) -> str:
    """`0.84 (0.82…0.86)` from the columns NAME, NAME_low and NAME_high; what is missing is left
    out."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if np.isnan(low):
        return number(value, form)
    return f"{value:{form}} ({low:{form}}…{high:{form}})"


def p_value(value: float) -> str:
    """Three decimals, `<.001`, or nothing."""
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if value >= 0.0005 else "<.001"
