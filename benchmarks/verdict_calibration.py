"""How often is the verdict right? On planted and trained policies whose answer is known.

    python -m benchmarks.verdict_calibration                  # 14 worlds, 252 policies
    python -m benchmarks.verdict_calibration --worlds 1       # a look

Every policy is judged from its demonstrations and a hundred unseen episodes each between and beyond
them, as a user's would be, and once more from thirty. Its truth is known: the share of a table by
construction, and how it does at unseen places from a thousand scenes of each region. Finished
policies are kept in --output-dir, and an interrupted run goes on.

An answer is right if it is the truth; "undecided" is right only where a figure that the truth
depends on lies within 0.15 of its boundary, or within 2.5 standard errors of a hundred episodes.
Coverage is that of 40 samples for each policy: thirty unseen episodes for the index, thirty
demonstrations for jumps (drawn with replacement, from those that there are, and only where
neighbours differ in how much they jump).
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy.stats import spearmanr

from actlens.mechanism import (
    JUMP,
    Part,
    Vectored,
    between,
    between_at,
    mechanism_axis,
    neighbours_of,
    some_executed,
)
from actlens.mechanism.axis import interval_by_group
from actlens.planted import PlantError, Region
from actlens.retrieval import (
    ALL_JOINTS,
    Demonstrations,
    Errors,
    TaskState,
    Undefined,
    Value,
    Yardstick,
    generalisation,
    run_demonstrations,
    sites_of,
)
from actlens.retrieval.function_axis import nearest_of_episodes
from actlens.scene import Scene
from actlens.statistics import Interval, wilson
from actlens.verdict import GENERALISES, TABLE_LIKE, Answer, judge
from benchmarks.verdict_references import Reference, Setting, references

INSIDE, BEYOND = Region.GAP, Region.OUTSIDE
MARGIN = 0.15
POWER = 2.5
"""Standard errors from the boundary at which a sample can be expected to exclude it."""
_BATCH = 256


@dataclass(frozen=True)
class Options:
    """What is judged."""

    worlds: int = 14
    first: int = 200
    """Number of the first world; those up to 199 were looked at while the verdict was made."""
    episodes: tuple[int, ...] = (100, 30)
    """Unseen ones of each region that the verdict is given; the first is what counts."""
    samples: int = 40
    """For the coverage of intervals."""
    output_dir: Path = Path("runs/verdict-calibration")
    json: bool = False
    """Print the summary as JSON instead of tables."""


@dataclass(frozen=True)
class Pool:
    """Errors of the policy and of retrieval at a pool of unseen scenes."""

    policy: Errors
    nearest: Errors
    episodes: np.ndarray

    def index(self, trained: Errors, trained_episodes: np.ndarray, chosen: np.ndarray) -> Value:
        """The generalisation index from some of the episodes."""
        at = np.flatnonzero(np.isin(self.episodes, chosen))
        policy, nearest = (Errors(e.measures, e.sums[:, at], e.n[at]) for e in self.sides)
        (found,) = generalisation(
            trained,
            policy,
            nearest,
            trained_episodes=trained_episodes,
            unseen_episodes=self.episodes[at],
            measures=[ALL_JOINTS],
        )
        return found.index

    @property
    def sides(self) -> tuple[Errors, Errors]:
        """Of the policy and of retrieval."""
        return self.policy, self.nearest


def _run(reference: Reference, scenes: list[Scene]) -> Demonstrations:
    model = reference.model
    return run_demonstrations(model, scenes, sites_of(model)[:1], batch_size=_BATCH)


def _truth(index: Value) -> float:
    return np.nan if isinstance(index, Undefined) else float(index.estimate)


def _expected(inside: float, beyond: float, share: float) -> Answer:
    """The answer, if all were known."""
    if not np.isfinite(inside):
        return Answer.UNDECIDED
    if inside < GENERALISES:
        return Answer.LOOKUP_TABLE if share > TABLE_LIKE else Answer.SMOOTH_MEMORISER
    if share > TABLE_LIKE:
        return Answer.UNDECIDED
    return Answer.GENERAL_RULE if beyond > GENERALISES else Answer.INTERPOLATOR


def _clear(pools: Mapping[Region, tuple[float, float]], share: float) -> bool:
    """Whether all that the answer depends on lies off its boundary, as far as data can tell.

    Args:
        pools: the index of a region, and the standard error of a sample of episodes.
    """
    off = {
        region: abs(index - GENERALISES) > max(MARGIN, POWER * error)  # False for NaN
        for region, (index, error) in pools.items()
    }
    decided = off[INSIDE] and abs(share - TABLE_LIKE) > MARGIN / 2
    needs_beyond = pools[INSIDE][0] > GENERALISES and share < TABLE_LIKE
    return bool(decided and (not needs_beyond or off[BEYOND]))


def judged(reference: Reference, options: Options) -> dict:
    """One policy: its truth, its verdict, and how often intervals held what they should."""
    began = time.monotonic()
    model, setting = reference.model, reference.setting
    shown = _run(reference, reference.shown)
    yardstick = Yardstick.of(shown.actions, shown.counted)
    task = TaskState.of(shown, yardstick, ["cube_x", "cube_y"])
    known = yardstick.errors(shown.predicted, shown.actions, shown.counted)
    known_to, truth, seen, covered = {}, {}, {}, {}
    rng = np.random.default_rng([3, setting.number, len(reference.kind)])
    for region in (INSIDE, BEYOND):
        unseen = _run(reference, setting.pool(region))
        nearest = nearest_of_episodes(task.keys(shown), shown.episodes, task.keys(unseen), 1)[:, 0]
        errors = lambda answered, at=unseen: yardstick.errors(answered, at.actions, at.counted)
        pool = Pool(errors(unseen.predicted), errors(shown.actions[nearest]), unseen.episodes)
        every = np.unique(pool.episodes)
        draw = lambda n, every=every: rng.choice(every, n, replace=False)
        whole = pool.index(known, shown.episodes, every)
        truth[region] = _truth(whole)
        error = np.nan
        if isinstance(whole, Interval):
            error = float(whole.high - whole.low) / (2 * 1.96)
            error *= (len(every) / options.episodes[0]) ** 0.5
        known_to[region] = (truth[region], error)
        for n in options.episodes:
            seen[region, n] = pool.index(known, shown.episodes, draw(n))
        drawn = [pool.index(known, shown.episodes, draw(30)) for _ in range(options.samples)]
        covered[region] = _coverage(drawn, truth[region])
    axis = mechanism_axis(model, reference.shown)
    run = Vectored.of(model, reference.shown, some_executed(model))
    pairs = neighbours_of(run.x, reference.shown)
    parts = {}
    for part in (Part.ENCODER, Part.CROSS_ATTENTION):
        way, few = between_at(
            model, part, reference.shown, some_executed(model), seed=setting.number
        )
        parts[part] = _jump_interval(way.jump, shown.episodes[few.first])
    verdicts = [
        judge(seen[INSIDE, n], axis, beyond=seen[BEYOND, n], parts=parts) for n in options.episodes
    ]
    verdict = verdicts[0]
    jump = axis.of(JUMP)
    jumps = between(run, pairs).jump
    share = reference.table_fraction
    expected = _expected(truth[INSIDE], truth[BEYOND], share)
    return {
        "world": setting.number,
        "kind": reference.kind,
        "episodes": setting.n_episodes,
        "share": share,
        "inside": truth[INSIDE],
        "beyond": truth[BEYOND],
        "expected": str(expected),
        "clear": _clear(known_to, share),
        "answer": str(verdict.answer),
        "answers": {n: str(v.answer) for n, v in zip(options.episodes, verdicts, strict=True)},
        "candidates": [str(answer) for answer in verdict.candidates],
        "site": str(verdict.site) if verdict.site else "",
        "in_encoder": reference.in_encoder,
        "jump": jump.value,
        "jump_of_all": float(max(jump.value, *(float(x.estimate) for x in parts.values()))),
        "rule_twin": jump.rule,
        "table_twin": jump.table,
        "covered_inside": covered[INSIDE],
        "covered_beyond": covered[BEYOND],
        "covered_jump": _jump_coverage(jumps, shown.episodes[pairs.first], options.samples, rng),
        "seconds": round(time.monotonic() - began, 2),
    }


def _jump_interval(jump: np.ndarray, groups: np.ndarray) -> Interval:
    found = interval_by_group(jump, groups, np.nanmedian, 0)
    return Interval(*(np.asarray(x) for x in found))


def _jump_coverage(
    jumps: np.ndarray, groups: np.ndarray, samples: int, rng: np.random.Generator
) -> list[int]:
    """Of samples of thirty episodes, from a population that is made of the present ones."""
    if np.nanquantile(jumps, 0.75) - np.nanquantile(jumps, 0.25) < 1e-3:
        return [0, 0]
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    drawn = []
    for _ in range(samples):
        chosen = [members[i] for i in rng.integers(len(members), size=30)]
        each = np.repeat(np.arange(30), [len(rows) for rows in chosen])
        drawn.append(_jump_interval(jumps[np.concatenate(chosen)], each))
    return _coverage(drawn, float(np.nanmedian(jumps)))


def _coverage(drawn: Sequence[Value], truth: float) -> list[int]:
    """How many intervals hold the truth, of how many that have bounds."""
    bounded = [x for x in drawn if isinstance(x, Interval) and np.isfinite(x.low)]
    if not np.isfinite(truth):
        return [0, 0]
    return [sum(bool(x.low <= truth <= x.high) for x in bounded), len(bounded)]


def collect(options: Options, console: Console) -> list[dict]:
    """All policies, those that were judged before included."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "policies.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(row["world"], row["kind"]): row for row in map(json.loads, lines)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("judging", total=18 * options.worlds)
        for number in range(options.first, options.first + options.worlds):
            for kind, make in references(Setting(number)):
                progress.update(task, description=f"world {number}: {kind}")
                if (number, kind) not in done:
                    try:
                        row = judged(make(), options)
                    except PlantError as error:
                        row = {"world": number, "kind": kind, "refused": str(error)}
                    done[number, kind] = row
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                progress.advance(task)
    last = options.first + options.worlds
    return [row for (number, _), row in done.items() if options.first <= number < last]


def summary(rows: list[dict]) -> dict:
    """The figures that the verdict is held to."""
    table = pd.DataFrame([row for row in rows if "refused" not in row])
    answers = pd.DataFrame([{str(n): x for n, x in each.items()} for each in table.answers])
    right = _right(table.answer, table)
    rules = table.expected.isin(["interpolator", "general rule"])
    lookup = table.answer == "lookup table"
    found = lookup & (table.expected == "lookup table")
    mixtures = table[table.kind.str.startswith(("mixture", "table, pl", "linear", "smooth"))]
    by_world = [spearmanr(part.share, part.jump).statistic for _, part in mixtures.groupby("world")]
    share = lambda holds, of: {
        "n": int(holds.sum()), "of": int(of), "interval": wilson(int(holds.sum()), int(of)),
    }  # fmt: skip
    coverage = {}
    for name in ("inside", "beyond", "jump"):
        held, of = np.array(table[f"covered_{name}"].tolist()).sum(0).tolist()
        coverage[name] = {"held": held, "of": of, "share": held / of}
    wrong = ~right & (table.answer != "undecided")
    return {
        "policies": len(table),
        "refused": len(rows) - len(table),
        "right": share(right, len(table)),
        "right where clear": share(right & table.clear, table.clear.sum()),
        "right, by unseen episodes": {
            str(n): share(_right(answers[n], table), len(table)) for n in answers.columns
        },
        "wrong, not undecided": share(wrong, len(table)),
        "lookup said of rules": share(lookup & rules, rules.sum()),
        "lookup said of anything else": share(
            lookup & (table.expected != "lookup table"), (table.expected != "lookup table").sum()
        ),
        "site right": share(
            (table.site == np.where(table.in_encoder, "encoder", "decoder MLP")) & found,
            found.sum(),
        ),
        "rank correlation of jump and share": {
            "all": float(spearmanr(mixtures.share, mixtures.jump).statistic),
            "least of a world": float(min(by_world)),
        },
        "coverage": coverage,
    }


def _right(answer: pd.Series, table: pd.DataFrame) -> pd.Series:
    return (answer == table.expected) | ((answer == "undecided") & ~table.clear)


def by_kind(rows: list[dict]) -> Table:
    """One line a kind: how many were called what, and in brackets how many are."""
    table = pd.DataFrame([row for row in rows if "refused" not in row])
    title = "Called so, in brackets how many are so"
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    short = dict(zip(Answer, ("table", "memoriser", "interp.", "rule", "undec."), strict=True))
    for name in ("kind", "n", "jump", *short.values()):
        shown.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    for kind, part in table.groupby("kind", sort=False):
        cells = []
        for answer in short:
            said, true = ((part[x] == answer).sum() for x in ("answer", "expected"))
            cells.append(f"{said} ({true})" if said or true else "")
        jump = f"{part.jump.min():.2f}…{part.jump.max():.2f}"
        shown.add_row(str(kind), str(len(part)), jump, *cells)
    return shown


def main() -> None:
    """Judge, and say how it went."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)  # small matrices
    rows = collect(options, Console(stderr=True))
    found = summary(rows)
    if options.json:
        sys.stdout.write(json.dumps(asdict(options) | found, default=str) + "\n")
        return
    console = Console()
    console.print(by_kind(rows))
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    main()
