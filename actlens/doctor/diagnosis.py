"""Findings, a diagnosis made of them, and their collection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from actlens.errors import CheckpointError

_T = TypeVar("_T")


class Severity(StrEnum):
    """How much a finding matters, mildest first."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing seen: what, where, and how to mend it (empty where there is nothing to do)."""

    severity: Severity
    where: str
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything `diagnose` saw of one checkpoint."""

    place: str
    layout: str
    """Which program and release wrote it; empty if that could not be told."""
    findings: tuple[Finding, ...]
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Numbers of weights (frozen batch norms included) by part of the network."""
    sha256: str = ""
    """Of the weights file."""

    @property
    def healthy(self) -> bool:
        """Whether `load_checkpoint` would accept it: no finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)


class Examination:
    """Collects findings while a checkpoint is taken apart."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, severity: Severity, where: str, what: str, fix: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(severity, where, what, fix))

    def note(self, where: str, notes: Sequence[str]) -> None:
        """Add what a reader noted."""
        for note in notes:
            self.add(Severity.NOTE, where, note)

    def attempt(self, where: str, step: Callable[[], _T]) -> _T | None:
        """The step's result; a refusal becomes an error finding for each line that starts one."""
        try:
            return step()
        except CheckpointError as error:
            for problem in _problems(str(error)):
                self.add(Severity.ERROR, where, problem)
        except OSError as error:
            self.add(Severity.ERROR, where, f"cannot be read ({error.strerror or error}).")
        return None


def _problems(message: str) -> list[str]:
    """The problems of one error; indented lines belong to the problem before them."""
    problems: list[str] = []
    for line in message.split("\n"):
        if line.startswith(" ") and problems:
            problems[-1] += "\n" + line
        else:
            problems.append(line)
    return problems
