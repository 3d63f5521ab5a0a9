"""Is the policy a lookup table? Every claim of the hypothesis, tested, in one report.

The hypothesis is that the decoder MLP memorises exact actions although the action vector after
cross-attention holds all of the environment, at unseen places too; that only 5-20 tokens get high
attention, not the arm state's; and that the MLP alone must change for a new place. Each claim gets
a figure with its interval, a null, a rule, and what it says.

    python -m experiments.hypothesis
    python -m experiments.hypothesis --quick
    python -m experiments.hypothesis --policy.path=you/act --dataset.root=known --unseen.root=new
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from actlens.claims import Claim
from actlens.errors import ActlensError, SceneError
from actlens.finetuning import claims_of
from actlens.kinematics import known_arm
from actlens.model.act import HookedACT
from actlens.provenance import provenance, write_json
from actlens.report.hypothesis import Tested, render_hypothesis
from actlens.retraining import late_claims, memory_claims
from actlens.verdict import (
    dissociation,
    dissociation_claims,
    dissociation_frame,
    table_claims,
)
from experiments import attention, finetuning, memorisation, retrieval
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.retrieval_scenes import BETWEEN, BEYOND
from experiments.scene_choice import Data, Policy, describe


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """What the policy was trained on; the bundled policy's own if not given."""
    unseen: Data = field(default_factory=Data)
    """Demonstrations that it was not trained on; so101-pick-cube-unseen for a bundled policy."""
    new: Data = field(default_factory=Data)
    """Demonstrations at new places to adapt to; a bundled policy's own choice if not given."""
    quick: bool = False
    """Fewer scenes and trainings of each: a look, with wide intervals."""
    seed: int = 0
    """Of everything drawn."""
    output_dir: Path | None = None
    """Where files go; runs/hypothesis-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Found:
    """What the parts of the plan found, in its order."""

    tested: tuple[Tested, ...]
    battery: retrieval.Done | None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Of all parts."""
        return tuple(claim for part in self.tested for claim in part.claims)


def _battery(config: Config, console: Console) -> retrieval.Done:
    return retrieval.run(
        retrieval.Config(
            policy=config.policy,
            dataset=config.dataset,
            unseen=config.unseen,
            quick=config.quick,
            seed=config.seed,
        ),
        console,
    )


def _memory(done: retrieval.Done) -> Tested:
    """The two axes of the verdict."""
    battery = done.battery
    if battery.mechanism is None:
        raise SceneError("; ".join(battery.missing) or "there is no mechanism axis")
    claims = table_claims(battery.mechanism, battery.indices)
    tables = {name: table for name, table in battery.tables.items() if name != "scenes"}
    return Tested("memory", claims, tables)


def _knowing(done: retrieval.Done, seed: int) -> Tested:
    """What is known at unseen places, and what is done there."""
    model = done.model
    origin = model.checkpoint.source if model.checkpoint is not None else ""
    arm = known_arm(model.config.joints, origin)
    if arm is None:
        raise SceneError("where the gripper goes is not known for this robot's joints")
    if done.unseen is None:
        raise SceneError("it takes demonstrations at unseen places (--unseen.root)")
    first = int(done.known.ran.frames.min())

    known, new = done.known.ran, done.unseen.known.ran
    known = known.at(known.frames == first)
    at_known = dissociation(known, None, arm, seed=seed)
    at_start, beyond = new.frames == first, done.unseen.beyond
    starts = {BETWEEN: at_start & ~beyond, BEYOND: at_start & beyond}
    tables = {
        f"{name}{probe}": dissociation(known, new.at(rows), arm, taught=taught, seed=seed)
        for probe, taught in (("", False), (", taught", True))
        for name, rows in starts.items()
        if len(np.unique(new.episodes[rows])) > 1
    }
    frame = dissociation_frame({"known": at_known} | tables)
    return Tested("knowing", dissociation_claims(tables, at_known), {"dissociation": frame})


def _attention(config: Config, console: Console) -> Tested:
    options = attention.Config(policy=config.policy, dataset=config.dataset, seed=config.seed)
    if config.quick:
        options = replace(options, episodes=12, moments=2, top=(1, 20), random=2)
    result = attention.run(options, console).result
    return Tested("attention", result.claims(), result.frames())


def _changing(config: Config, console: Console) -> Tested:
    options = finetuning.Config(
        policy=config.policy, dataset=config.dataset, new=config.new, seed=config.seed
    )
    if config.quick:
        options = replace(options, quick=True, episodes=12, every=15, steps=40, rates=(0.03,))
    found, _, _ = finetuning.run(options, console)
    return Tested("changing", claims_of(found), {"finetuning": found.frame()})


def _by_heart(config: Config, console: Console) -> Tested:
    options = memorisation.Config(
        policy=config.policy,
        dataset=config.dataset,
        unseen=config.unseen,
        quick=config.quick,
        seed=config.seed,
    )
    if config.quick:
        options = replace(options, steps=0)  # nothing settles in so short a time
    done = memorisation.run(options, console)
    claims = memory_claims(done.study)
    if done.late is not None:
        claims += late_claims(done.late)
    return Tested("by heart", claims, done.frames)


def run(
    config: Config, console: Console, keep: Callable[[Tested], object]
) -> tuple[Found, HookedACT]:
    """Test one part after the other; `keep` is given each as soon as it is finished.

    What cannot be tested with the data that there are is said, and the rest goes on.
    """
    tested: list[Tested] = []
    battery: list[retrieval.Done] = []

    def done() -> retrieval.Done:
        if not battery:
            battery.append(_battery(config, console))
        return battery[0]

    parts: dict[str, Callable[[], Tested]] = {
        "memory": lambda: _memory(done()),
        "knowing": lambda: _knowing(done(), config.seed),
        "by heart": lambda: _by_heart(config, console),
        "attention": lambda: _attention(config, console),
        "changing": lambda: _changing(config, console),
    }
    model = config.policy.files.load()  # a policy that cannot be loaded ends it all
    for name, test in parts.items():
        began = time.monotonic()
        try:
            part = test()
        except ActlensError as error:
            part = Tested(name, (), {}, lacking=str(error))
        part = replace(part, seconds=time.monotonic() - began)
        tested.append(part)
        keep(part)
        console.print(f"{name}: {part.seconds:.0f} s", style="dim")
    return Found(tuple(tested), battery[0] if battery else None), model


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "hypothesis", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    began = time.monotonic()
    found, model = run(config, progress, lambda part: write_tables(part.tables, folder))
    facts = {"seconds_by_part": {part.name: round(part.seconds, 1) for part in found.tested}}
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "claims.csv", folder / "report.txt", folder / "provenance.json"]
    pd.DataFrame([vars(claim) for claim in found.claims]).to_csv(files[0], index=False)
    write_json(files[2], origin)
    listed = with_page(folder, files)
    verdicts = (None, None)
    if found.battery is not None:
        verdicts = found.battery.battery.verdict, found.battery.battery.at_start
    report = render_hypothesis(
        found.tested,
        *verdicts,
        policy=describe(model, config.policy.path),
        facts=[
            ("data", ", ".join(_data_of(found))),
            ("run", f"{origin['seconds']:.0f} s, {origin['threads']} threads"),
        ],
        files=listed,
        next_steps=[
            "python -m experiments.retrieval --rollout 20   surrogates and a monitor that act",
            "python -m experiments.generalization   what more demonstrations change",
            "python -m experiments.rome   edit one behaviour",
        ],
    )
    with files[1].open("w", encoding="utf-8") as file:
        Console(file=file, width=100).print(report)
    tables = {
        f"{part.name}, {name}": table
        for part in found.tested
        for name, table in part.tables.items()
    }
    write_report(report, listed, origin=origin, tables=tables)
    if config.json:
        content = {
            "claims": [vars(claim) for claim in found.claims],
            "answer": retrieval.said(verdicts[0]),
            "answer_at_frame_0": retrieval.said(verdicts[1]),
            "not_tested": {p.name: p.lacking for p in found.tested if p.lacking},
            "dissociation": [
                row
                for part in found.tested
                for name, table in part.tables.items()
                if name == "dissociation"
                for row in rows(table)
            ],
            "provenance": origin,
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return
    Console().print(report)


def _data_of(found: Found) -> list[str]:
    if found.battery is None:
        return ["none could be read"]
    origin = found.battery.origin
    unseen = [f"unseen: {origin['unseen']}"] if origin["unseen"] else []
    return [origin["dataset"], *unseen]


if __name__ == "__main__":
    raise SystemExit(main())
