"""The console report of a patching run; computes nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actlens.metrics import Positions
from actlens.patching import ALL_TOKENS, CHANGED, UNCHANGED, PatchingResult, Unit
from actlens.report.closing import closing
from actlens.scenes.untrusted import clean_text

_MEASURED = {
    Positions.WHOLE: "whole chunk",
    Positions.EXECUTED: "the executed positions of the chunk",
}


def _share(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.2f}".replace("-0.00", "0.00")


def _number(value: float) -> str:
    """Three digits of a joint's change, whatever its unit."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:#.3g}"


def _mm(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.1f}"


def _interval(row: pd.Series, column: str) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    return "" if not np.isfinite(low) else f"{_share(low)}…{_share(high)}"


def _small(p: float) -> str:
    if not np.isfinite(p):
        return "-"
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def _header(result: PatchingResult, policy: str, facts: Sequence[tuple[str, str]]) -> Panel:
    first = result.pairs[0]
    lines = [
        ("asked", f"which parts carry {result.differs_in}?"),
        ("policy", policy),
        (
            "scenes",
            f"{len(result.pairs)} pair{'s' * (len(result.pairs) > 1)}, "
            f"e.g. {first.clean.address} (clean) and {first.corrupt.address} (corrupt) of "
            f"{first.clean.source or 'the dataset'}",
        ),
        *((name, f"{_where(scene)}") for name, scene in (("", first.clean), ("", first.corrupt))),
        (
            "metric",
            "share of the action difference brought back by patching one part "
            f"(0 nothing, 1 all), {_MEASURED[result.options.positions]}, joints weighed by their "
            "spread",
        ),
        ("error", _audited(result)),
        *facts,
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, text in lines:
        if text:
            grid.add_row(name, Text(clean_text(text, limit=400)))
    return Panel(grid, title="actlens · activation patching", title_align="left")


def _audited(result: PatchingResult) -> str:
    """What was exact, and how far the rest is from it."""
    audits = result.audits
    if not audits:
        return "none: every patch is exact"
    checked = sum(audit.n_random + audit.n_suspect for audit in audits)
    return (
        f"at most {max(audit.largest for audit in audits):.2%} of an action chunk's norm over "
        f"{checked} patches that were made again exactly, half of them the likeliest to be wrong "
        f"(allowed {result.options.max_error:.2%}; --max-error 0 makes all exact)"
    )


def _where(scene) -> str:
    labels = scene.labels
    if "cube_x" not in labels or "cube_y" not in labels:
        return ""
    return f"  {scene.address}: cube at x {labels['cube_x']:.3f} m, y {labels['cube_y']:.3f} m"


def _depth_table(result: PatchingResult, frame: pd.DataFrame) -> Table:
    """Denoised share of groups of tokens at every depth: where the information sits."""
    hooks = list(dict.fromkeys(p.hook for p in result.parts if p.unit is Unit.TOKEN))
    title = "Where it sits: share restored by clean tokens, by depth (denoise)"
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    table.add_column("tokens", overflow="fold")
    for depth in range(len(hooks)):
        last = depth == len(hooks) - 1
        table.add_column("output" if last else f"block {depth}", justify="right")
    vectors = [p.label for p in result.parts if p.unit is Unit.TOKEN and "[" not in p.label]
    groups = [p.label for p in result.parts if p.unit is Unit.GROUP]
    for label in dict.fromkeys([*groups, *vectors]):
        rows = frame[(frame.part == label) & frame.hook.isin(hooks)].set_index("hook")
        style = "dim" if label == ALL_TOKENS else None
        cells = [_share(rows.denoise.get(hook, np.nan)) for hook in hooks]
        table.add_row(Text(_group(label)), *cells, style=style)
    return table


def _ranked_table(title: str, rows: pd.DataFrame, *, with_null: bool) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    table.add_column("hook point", overflow="fold", ratio=1)
    with_gripper = bool(rows.gripper_mm.notna().any())
    columns = ["denoise", "95 %", "noise"] + ["mm"] * with_gripper + ["null", "q"] * with_null
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for _, row in rows.iterrows():
        name = row.hook if not row.part else f"{row.hook} [{row.part}]"
        cells = [_share(row.denoise), _interval(row, "denoise"), _share(row.noise)]
        if with_gripper:
            cells.append(_mm(row.gripper_mm))
        if with_null:
            cells += [_share(row.null), _small(row.q)]
        table.add_row(Text(name), *cells)
    return table


def _joint_tables(frame: pd.DataFrame, joints: pd.DataFrame) -> list[RenderableType]:
    """Which joints move, by depth of the strongest tokens and by sublayer."""
    rows = frame[(frame.unit == Unit.SUBLAYER.value) & ~frame.hook.str.endswith("hook_post")]
    # Those that restore everything move every joint by all of its difference.
    rows = rows[rows.denoise.abs() < 0.995].sort_values(
        "denoise", ascending=False, key=abs, kind="stable"
    )
    table = Table(
        title=Text("Sublayers, the strongest three: mean change (of the two scenes' difference)"),
        title_justify="left", box=None, padding=(0, 1), show_header=False,
    )  # fmt: skip
    table.add_column(overflow="fold", ratio=2)
    table.add_column(overflow="fold", ratio=3)
    for hook in rows.hook[:3]:
        moved = joints[(joints.hook == hook) & (joints.unit == Unit.SUBLAYER.value)]
        moved = moved.sort_values("component", ascending=False, key=abs, kind="stable")[:3]
        words = (
            f"{_joint(row.joint)} {_number(row.effect)} (of {_number(row.difference)})"
            for _, row in moved.iterrows()
        )
        table.add_row(Text(hook), Text(", ".join(words)))
    return [*_joints_by_depth(joints), table, Text()]


def _joints_by_depth(joints: pd.DataFrame) -> list[RenderableType]:
    """How far every joint moves by the group of tokens that carries most; none without cameras."""
    groups = joints[(joints.unit == Unit.GROUP.value) & (joints.part != ALL_TOKENS)]
    if not groups.component.notna().any():
        return []
    strongest = str(groups.groupby("part").component.sum().idxmax())
    title = f"Which joints clean tokens move ({_group(strongest)}): mean change"
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    table.add_column("dataset units", overflow="fold")
    hooks = list(dict.fromkeys(groups.hook))
    for depth in range(len(hooks)):
        last = depth == len(hooks) - 1
        table.add_column("output" if last else f"block {depth}", justify="right")
    table.add_column("two scenes", justify="right")
    for joint, rows in groups[groups.part == strongest].groupby("joint", sort=False):
        effects = rows.set_index("hook").effect
        cells = [_number(effects.get(hook, np.nan)) for hook in hooks]
        table.add_row(Text(_joint(str(joint))), *cells, _number(rows.difference.iloc[0]))
    return [table, Text()]


def _group(label: str) -> str:
    return label.replace(CHANGED, "where the images differ").replace(UNCHANGED, "elsewhere")


def _joint(name: str) -> str:
    return clean_text(name.removesuffix(".pos"))


def render_patching(
    result: PatchingResult,
    frame: pd.DataFrame,
    *,
    policy: str,
    joints: pd.DataFrame | None = None,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The report: what was asked, where the difference sits, what carries it, and what to do next.

    Args:
        frame: `result.frame()`.
        policy: one line that identifies the policy.
        joints: `result.joints()`, to show which joints move.
        facts: further lines of the header (machine, calibration).
        files: what was written.
        next_steps: commands worth running now.
    """
    with_null = bool(result.null)
    ranked = frame.sort_values("denoise", ascending=False, key=abs, kind="stable")
    tokens = ranked[ranked.unit == Unit.TOKEN.value].groupby("hook", sort=False).head(3)
    tokens = tokens.sort_values(["depth", "denoise"], ascending=[True, False])
    heads = ranked[ranked.unit == Unit.HEAD.value].head(8)
    sublayers = frame[frame.unit == Unit.SUBLAYER.value]
    parts: list[RenderableType] = [
        _header(result, policy, facts),
        _depth_table(result, frame),
        Text(),
        _ranked_table(
            "Single tokens, the strongest three at each depth", tokens, with_null=with_null
        ),
        Text(),
        _ranked_table("Attention heads, the strongest eight", heads, with_null=with_null),
        Text(),
        _ranked_table("Whole sublayers", sublayers, with_null=with_null),
        Text(),
        *([] if joints is None else _joint_tables(frame, joints)),
        Text(_footnote(result, frame)),
    ]
    parts += closing(
        [effect for _, effect in result.left_out],
        len(result.pairs),
        min_effect=result.options.min_effect,
        files=files,
        next_steps=next_steps,
    )
    return Group(*parts)


def _footnote(result: PatchingResult, frame: pd.DataFrame) -> str:
    n, n_clusters = len(result.pairs), len(set(result.clusters))
    lines = [
        "denoise: the clean activation put into the corrupt run (sufficient?). "
        "noise: the corrupt one put into the clean run (necessary?)."
    ]
    pairs = f"{n} pair{'s' * (n > 1)} in {n_clusters} cluster{'s' * (n_clusters > 1)}"
    if np.isfinite(frame.denoise_low).any():
        lines.append(f"95 %: bootstrap over {pairs} that share no episode, 2,000 draws.")
    else:
        lines.append(f"no intervals: {pairs} that share no episode cannot give any (5 can).")
    if np.isfinite(result.gripper_difference_mm):
        lines.append(
            "mm: how far denoising moves the gripper's commanded tip at the last executed step of "
            f"the chunk; the two scenes' own are {_mm(result.gripper_difference_mm)} mm apart."
        )
    if result.null:
        lines.append(_about_null(result, frame))
    else:
        lines.append("no null: these pairs have no unrelated donors.")
    controls = frame[(frame.part == ALL_TOKENS) | (frame.hook == "decoder.0.hook_attn_out")]
    whole = controls[controls.part == ALL_TOKENS].denoise
    dead = controls[controls.part != ALL_TOKENS].denoise
    lines.append(
        f"controls: all tokens restore {whole.min():.4f}…{whole.max():.4f} (must be 1); "
        f"decoder.0.hook_attn_out, a constant of the weights, {dead.abs().max():.1e} (must be 0)."
    )
    return " ".join(lines)


def _about_null(result: PatchingResult, frame: pd.DataFrame) -> str:
    tested, n_clusters = int(np.isfinite(frame.p).sum()), len(set(result.null_clusters))
    null = (
        "null: the same part taken from a scene that agrees with the corrupt one in "
        f"{clean_text(result.differs_in)} and differs otherwise."
    )
    if not tested:
        return f"{null} no q: the pairs share donors' episodes, so that nothing is left to permute."
    n_found = int((frame.p_max_t <= 0.05).sum())
    return (
        f"{null} q: denoise against null, sign flips of {n_clusters} clusters that share no "
        f"episode, donors' included, Benjamini-Hochberg over {tested} parts; they can give "
        f"p >= {2 / 2**n_clusters:.2g}. {n_found} parts also hold against the largest of all parts "
        "(Westfall-Young max-T, 0.05)."
    )
