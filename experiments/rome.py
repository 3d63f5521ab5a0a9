"""Make the policy do something else in one scene, and see what else changes. No training.

Without arguments: the bundled policy, 50 scenes of different episodes, in each of them one joint
ten degrees further, granted by closed-form edits of the last decoder MLP; how far that carries to
scenes around, what it moves far away, and what fine-tuning and other rivals do. On your own policy:

    python -m experiments.rome --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --joint shoulder_pan.pos --offset 10

One edit of your own, as a checkpoint that LeRobot runs:

    python -m experiments.rome --scene 3:0 --joint shoulder_pan.pos --offset 10 --export edited
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite, known_blocks
from actlens.provenance import provenance, write_json
from actlens.report.chunks import save_chunks
from actlens.report.plain import plain
from actlens.report.rome import render_rome
from actlens.report.styles import WARNING
from actlens.rome.cases import Case, Kind, cases_of
from actlens.rome.errors import EditError
from actlens.rome.evaluation import Scale, evaluate, noise_drift
from actlens.rome.evaluation_result import RomeEvaluation
from actlens.rome.many import ManyEdits, compatible, contradicting, edit_many
from actlens.rome.many_rules import rules
from actlens.rome.request import Request
from actlens.rome.site_result import SiteSuccess
from actlens.rome.site_success import SiteOptions, site_success
from actlens.rome.situations import places_of
from actlens.rome.study import SCOPED, Study
from actlens.rome.targets import TargetOptions, TargetSet, gather_targets, halves
from experiments.command import rows, run_command, with_page, write_report
from experiments.one_edit import edit_one
from experiments.rollouts import require_simulator
from experiments.rome_options import Asked, Config, block_of, progress
from experiments.rome_rollouts import roll_out
from experiments.scene_choice import describe, open_demonstrations

FEW, FEWER = 10, 8
"""Cases on which other requests and the frontier, and rivals that take long, are tried."""
EVERY = 3
"""Of the executed positions, those that are asked for at every block: encoder blocks take long."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    main: RomeEvaluation
    further: tuple[RomeEvaluation, ...]
    """Slow rivals, the frontier, and other kinds of request."""
    many: ManyEdits
    sites: pd.DataFrame | None
    explained: pd.DataFrame | None
    found: TargetSet
    study: Study
    model: HookedACT
    origin: dict


def evaluate_all(config: Config, console: Console) -> Done:
    """Load, read, edit, measure, and say what it took; `console` shows progress."""
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    model = config.policy.files.load()
    dataset, block, asked = (
        open_demonstrations(config.dataset, config.policy.path),
        block_of(config, model),
        Asked.by(config, model),
    )
    places = places_of(dataset, config.place)
    fitted, looked_at = halves(dataset)
    if config.exchange_halves:
        fitted, looked_at = looked_at, fitted
    options = TargetOptions(n_targets=config.targets, seed=config.seed)
    with fastest_float32_matmul() as matmul:
        with progress(console, "key statistics", len(fitted) * 10) as tell:
            study = Study.of(
                model, dataset, block, fitted, places=places, progress=tell,
                blocks=known_blocks(model) if config.sites else (),
            )  # fmt: skip
        n = len(looked_at) * len(options.phases) + 6 * min(config.targets, len(looked_at))
        with progress(console, "scenes", n) as tell:
            site = MLPSite.of(model, block)
            found = gather_targets(model, site, dataset, places, looked_at, options, tell)
    # In full precision from here: what an edit leaves to its target is told apart from rounding.
    of_kind = lambda kind: cases_of(
        model, found, kind, asked.joint, asked.offset, limits=study.limits, seed=config.seed
    )
    cases = of_kind(Kind.ONE_JOINT)
    scale = Scale(asked.tolerance, study.limits)
    plan = [
        (Kind.ONE_JOINT, cases, study.ways()),
        (Kind.ONE_JOINT, cases[:FEWER], study.slow_ways()),
        ("frontier", cases[:FEW], study.frontier(cases[:FEW])),
    ]
    for kind in (Kind.ANY_JOINT, Kind.SEVERAL_JOINTS, Kind.OTHER_SCENE):
        try:
            plan.append((kind, of_kind(kind)[:FEW], {SCOPED: study.scoped()}))
        except EditError as error:  # the limits allow the main request, and not this one
            console.print(Text(plain(f"{kind}: left out. {error}"), style=WARNING))
    total = sum(len(some) * len(ways) for _, some, ways in plan)
    with progress(console, "edits", total) as tell:
        tried = [
            RomeEvaluation(
                str(kind),
                some,
                found.groups,
                tuple(
                    evaluate(name, make, some, found, scale, tell) for name, make in ways.items()
                ),
                noise_drift(some, found),
                config.seed,
            )
            for kind, some, ways in plan
        ]
    either = compatible(of_kind(Kind.EITHER_WAY), places, study.scope)
    against = contradicting(either, found, places, max(config.many, default=0) // 2)
    tried_rules = rules(study)
    with progress(console, "many edits", 2 * len(tried_rules) * sum(config.many)) as tell:
        granted = edit_many(either, found, tried_rules, config.many, scale, places, progress=tell)
        if against:
            granted += edit_many(
                against, found, tried_rules, [len(against)], scale, places,
                contradictory=True, progress=tell,
            )  # fmt: skip
    sites = explained = None
    if config.sites:
        by_site = tried_at_sites(config, study, cases, asked, console)
        sites = by_site.summary(seed=config.seed)
        explained = by_site.explained_frame(seed=config.seed)
    facts = {
        "dataset": dataset.name,
        "block": block,
        "asked": dataclasses.asdict(asked),
        "data_sha256": study.statistics.data_sha256,
        "targets": [case.target.scene.address for case in cases],
        "edits": total,
        "matmul": dataclasses.asdict(matmul),
        "keeps_freed_memory": reuses_memory,
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    first, *further = tried
    many = ManyEdits(granted, config.seed)
    return Done(first, tuple(further), many, sites, explained, found, study, model, origin)


def tried_at_sites(
    config: Config, study: Study, cases: Sequence[Case], asked: Asked, console: Console
) -> SiteSuccess:
    """The first requests at every block, beside causal tracing."""
    some = cases[: config.sites]
    blocks = [study.statistics, *study.elsewhere]
    order = known_blocks(study.model)
    blocks.sort(key=lambda one: order.index(one.site.block))
    with progress(console, "edits by block", len(some) * len(blocks)) as tell:
        return site_success(
            study.model,
            [_sparser(case) for case in some],
            blocks,
            [[] for _ in some],
            options=SiteOptions(within=asked.tolerance, seed=config.seed),
            limits=study.limits,
            progress=tell,
        )


def _sparser(case: Case) -> Request:
    """A case's request for fewer positions."""
    return dataclasses.replace(case.prepared.requests[0], positions=tuple(case.positions[::EVERY]))


def tables_of(done: Done) -> dict[str, pd.DataFrame]:
    """Everything that was measured, by file name."""
    evaluations = (done.main, *done.further)
    tables = {
        "cases": pd.concat([one.frame() for one in evaluations], ignore_index=True),
        "groups": pd.concat([one.by_group() for one in evaluations], ignore_index=True),
        "scores": pd.concat([one.scores() for one in evaluations], ignore_index=True),
        "many": done.many.frame(),
    }
    if done.sites is not None and done.explained is not None:
        tables |= {"sites": done.sites, "explained": done.explained}
    return tables


def write_files(done: Done, tables: dict[str, pd.DataFrame], folder: Path) -> tuple[Path, ...]:
    """Tables, picture and provenance of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        files.append(folder / f"{name}.parquet")
        if name != "cases":
            table.to_csv(folder / f"{name}.csv", index=False)
            files.append(folder / f"{name}.csv")
    case = done.main.cases[0]
    files.append(folder / "chunks.png")
    save_chunks(files[-1], case, done.study.scoped()(case), done.found)
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    return tuple(files)


def show(done: Done, config: Config, folder: Path) -> RenderableType:
    """Write a run's files and its page, and print the report or the JSON; the report."""
    tables = tables_of(done)
    files = with_page(folder, write_files(done, tables, folder))
    asked, origin = Asked.by(config, done.model), done.origin
    took = f"{origin['seconds']:.0f} s, {origin['threads']} thread{'s' * (origin['threads'] > 1)}"
    report = render_rome(
        done.main,
        tables,
        policy=describe(done.model, config.policy.path),
        asked=f"{asked.joint} {asked.offset:+g}, within {asked.tolerance:g}",
        study=done.study,
        facts=[("data", origin["dataset"]), ("run", took)],
        files=files,
        next_steps=[
            f"python -m experiments.rome --scene {origin['targets'][0]} "
            f"--joint {asked.joint} --offset {asked.offset:g} --export edited",
            "python -m experiments.rome --rollout 10   does the arm do it, and still succeed?",
        ],
    )
    write_report(report, files, origin=origin, tables=tables)
    if config.json:
        shown = {name: rows(table) for name, table in tables.items() if name != "cases"}
        sys.stdout.write(json.dumps(shown | {"provenance": done.origin}) + "\n")
    else:
        Console().print(report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "rome", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, console: Console) -> None:
    if config.scene is not None:
        edit_one(config, folder, console)
        return
    if config.export is not None:
        raise SceneError("--export needs the scene to edit: add --scene EPISODE:FRAME.")
    if config.rollout:
        require_simulator()
    done = evaluate_all(config, console)
    report = show(done, config, folder)
    if config.rollout:
        rolled = roll_out(config, done.study, folder, console)
        shown = sorted(folder.glob("*.png"))
        both, page = Group(report, Text(), rolled), with_page(folder, ())
        write_report(both, page, origin=done.origin, tables=tables_of(done), shown=shown)
        (console if config.json else Console()).print(Text(), rolled)


if __name__ == "__main__":
    raise SystemExit(main())
