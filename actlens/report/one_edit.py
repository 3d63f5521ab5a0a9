"""What is said of one edit; computes nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from actlens.report.closing import closing
from actlens.report.plain import plain
from actlens.report.styles import WARNING
from actlens.rome.weight_edit import WeightEdit


def render_edit(
    edit: WeightEdit,
    spill: Float[Tensor, " key"],
    *,
    policy: str,
    files: Sequence[Path] = (),
) -> RenderableType:
    """One edit: what was asked for, what it changes, how much of it other keys get.

    Args:
        spill: `edit.spill` at some keys of the data.
        policy: one line that identifies the policy.
        files: what was written.
    """
    record = edit.record
    request, shares = (
        record.requests[0],
        spill.double().quantile(torch.tensor([0.5, 0.95]).double()),
    )
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    moved = np.subtract(request.target, request.before).mean(0)
    named = [f"{j} {x:+.3g}" for j, x in zip(record.joints, moved, strict=True) if abs(x) > 1e-6]
    lines = [
        ("policy", policy),
        ("scene", request.scene),
        ("asked", f"{', '.join(named) or 'no change'} at {len(request.positions)} chunk positions"),
        ("granted", f"to within {request.left_over:.2g} at every position"),
        (
            "edit",
            f"rank {edit.rank}, {100 * edit.relative_norm:.2g} % of the norm of the output weights "
            f"of {edit.site.block}.mlp",
        ),
        ("options", _options(record.options)),
        (
            "elsewhere",
            f"keys of the data get {shares[0]:.3f} of the edit (median) and {shares[1]:.2f} (one "
            "in twenty, those near the scene among them)",
        ),
    ]
    for name, text in lines:
        grid.add_row(Text(name), Text(plain(text)))
    note = Text("! Try it in simulation or at low speed first: nobody has told the edit what else "
                "should change with the scene.", style=WARNING)  # fmt: skip
    return Group(grid, note, *closing([], 0, min_effect=0, files=files))


def _options(options: Mapping[str, Any]) -> str:
    """Every option in a word or two: of a rule its kind, numbers as they are."""
    kind = lambda value: value["kind"] if isinstance(value, Mapping) else value
    return "; ".join(f"{name}: {kind(value)}" for name, value in options.items())
