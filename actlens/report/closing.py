"""How the reports on scene pairs end: what was left out, what was written, what to do next."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from actlens.report.styles import WARNING


def closing(
    left_out: Sequence[float],
    n_kept: int,
    *,
    min_effect: float,
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> list[RenderableType]:
    """The last lines.

    Args:
        left_out: the action differences (root mean square, dataset units) of pairs that are too
            alike to be used.
        n_kept: pairs that were used.
        min_effect: the limit.
        files: what was written.
        next_steps: commands worth running now.
    """
    parts: list[RenderableType] = []
    if left_out:
        parts.append(
            Text(
                f"! {len(left_out)} of {len(left_out) + n_kept} pairs left out: their two actions "
                f"differ by at most {max(left_out):.3g} (limit {min_effect:g}, root mean square in "
                "dataset units)",
                style=WARNING,
            )
        )
    if files:
        parts += [Text(), *(Text(f"  {path}") for path in files)]
    if next_steps:
        parts += [Text(), Text("next", style="bold"), *(Text(f"  {step}") for step in next_steps)]
    return parts
