"""The house rules that a machine can hold: style, types, layers, documentation, README, CI."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*words, **environment):
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("lint-imports",),
        ("pyrefly", "check"),
    ],
    ids=" ".join,
)
def test_the_code_passes(words):
    done = run(BIN / words[0], *words[1:])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def readme_commands():
    """The README's plain fenced blocks (those that name no language)."""
    pieces = re.split(r"^```(.*)$", (ROOT / "README.md").read_text(), flags=re.M)
    fenced = zip(pieces[1::4], pieces[2::4], strict=True)
    return [text.strip() for language, text in fenced if not language]


def test_ci_runs_exactly_the_readmes_test_command():
    (command,) = [c for c in readme_commands() if c.endswith("pytest")]
    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_the_readmes_two_commands_are_there():
    start = "python3 -m venv .venv && .venv/bin/pip install -e"
    assert readme_commands() == [
        f"{start} . && .venv/bin/python -m experiments.patching",
        f"{start} '.[dev]' && .venv/bin/python -m pytest",
    ]


def test_no_file_unpickles_or_evaluates_what_it_reads():
    pattern = re.compile(
        r"weights_only\s*=\s*False|pickle\.loads?\(|allow_pickle\s*=\s*True|(?<![\w.`])eval\("
    )
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in (ROOT / "actlens").rglob("*.py")
        for match in pattern.finditer(path.read_text())
    ]
    assert not found


def test_the_bundled_files_stay_within_their_budget():
    bundled = sum(p.stat().st_size for p in (ROOT / "actlens/bundled").rglob("*") if p.is_file())
    assert bundled <= 75e6
