"""A diagnosis for the terminal and for programs."""

import json
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from actlens.doctor import Diagnosis, Severity
from actlens.report.plain import plain
from actlens.report.styles import BAD, GOOD, NOTE, WARNING

_MARKS = {
    Severity.OK: ("ok", GOOD),
    Severity.NOTE: ("note", NOTE),
    Severity.WARNING: ("warning", WARNING),
    Severity.ERROR: ("ERROR", f"bold {BAD}"),
}


def render(diagnosis: Diagnosis) -> RenderableType:
    """The findings, worst first, with the verdict on top and the parameters below."""
    ranks = list(Severity)
    findings = sorted(diagnosis.findings, key=lambda f: ranks.index(f.severity), reverse=True)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.severity]
        what = Text(plain(finding.what))
        if finding.fix:
            what.append("\n→ " + plain(finding.fix), style="italic")
        table.add_row(Text(mark, style=style), Text(plain(finding.where), style="dim"), what)
    return Group(_verdict(diagnosis), Text(), table, *_parameters(diagnosis))


def _verdict(diagnosis: Diagnosis) -> Text:
    errors, warnings = (len(diagnosis.of(s)) for s in (Severity.ERROR, Severity.WARNING))
    verdict = Text(plain(diagnosis.place), style="bold")
    if diagnosis.layout:
        verdict.append(f"\n{plain(diagnosis.layout)}", style="not bold")
    if errors:
        verdict.append(f"\nRefused: {_count(errors, 'error')}.", style=f"bold {BAD}")
    elif warnings:
        verdict.append(f"\nLoads, with {_count(warnings, 'warning')}.", style=f"bold {WARNING}")
    else:
        verdict.append("\nHealthy.", style=f"bold {GOOD}")
    return verdict


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" + ("" if n == 1 else "s")


def _parameters(diagnosis: Diagnosis) -> list[RenderableType]:
    if not diagnosis.parameters:
        return []
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for part, n in diagnosis.parameters.items():
        table.add_row(Text(part), Text(f"{n:,}"))
    table.add_row(Text("together"), Text(f"{sum(diagnosis.parameters.values()):,}"), style="bold")
    rows: list[RenderableType] = [
        Text(),
        Text("Weights", style="bold"),
        Padding(table, (0, 0, 0, 2)),
    ]
    if diagnosis.sha256:
        rows.append(Text(f"SHA-256 {diagnosis.sha256}", style="dim"))
    return rows


def to_json(diagnosis: Diagnosis) -> str:
    """The diagnosis for programs: every field, and `healthy`."""
    content = asdict(diagnosis) | {"healthy": diagnosis.healthy}
    return json.dumps(content, indent=2)
