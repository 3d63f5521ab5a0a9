"""Make the policy do something else in one scene, and see what else changes. No training.

Without arguments: the bundled policy, 50 scenes of different episodes, in each of them one joint ten
degrees further, granted by rank-one edits of the last decoder MLP; how far that carries to scenes
around, what it moves far away, and what fine-tuning and other rivals do. On your own policy:

    python -m experiments.rome --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --joint shoulder_pan.pos --offset 10

One edit of your own, as a checkpoint that LeRobot runs:

    python -m experiments.rome --scene 3:0 --joint shoulder_pan.pos --offset 10 --export edited
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.config import ACTION_KEY
from actlens.errors import ActlensError, SceneError
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite, known_blocks
from actlens.model.units import spread_of
from actlens.provenance import provenance, write_json
from actlens.report.chunks import save_chunks
from actlens.report.plain import plain
from actlens.report.rome import render_rome
from actlens.rome.cases import Case, Kind, cases_of
from actlens.rome.evaluation import Scale, evaluate, noise_drift
from actlens.rome.evaluation_result import RomeEvaluation
from actlens.rome.many import ManyEdits, compatible, contradicting, edit_many, rules
from actlens.rome.site_result import SiteSuccess
from actlens.rome.site_success import SiteOptions, site_success
from actlens.rome.situations import CUBE, places_of
from actlens.rome.study import SCOPED, Study
from actlens.rome.targets import TargetOptions, TargetSet, gather_targets, halves
from actlens.scenes.dataset import Dataset, open_dataset
from experiments.rollouts import require_simulator
from experiments.scene_choice import Data, Policy, describe

BUNDLED = "so101-"
MOST_SLOW = 16
"""Cases on which slow rivals, other requests and the frontier are tried."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    block: str | None = None
    """Whose MLP is edited: decoder.0, encoder.2, …; the last of the decoder if not given."""
    joint: str | None = None
    """That is to move; the first if not given."""
    offset: float | None = None
    """By how much, in dataset units; 10 if not given, or half of the joint's standard deviation
    where that is less."""
    tolerance: float | None = None
    """Dataset units by which an action may miss its target; a tenth of the offset if not given."""
    targets: int = 50
    """Scenes to edit, each of another episode; at most half of the episodes."""
    place: tuple[str, ...] = CUBE
    """Labels, in metres, that say where an episode takes place. Episodes without them are near one
    another if their demonstrations are."""
    many: tuple[int, ...] = (1, 4, 16)
    """How many requests to grant at once."""
    sites: int = 6
    """Requests to try at every block, beside causal tracing; 0 for none."""
    scene: str | None = None
    """Make one edit, in the scene EPISODE:FRAME, instead of an evaluation."""
    export: Path | None = None
    """With --scene: where the edited policy goes, as a LeRobot checkpoint."""
    rollout: int = 0
    """Also try edits in closed loop, so many, in the simulator (extra `sim`)."""
    seed: int = 0
    """Of targets, requests and the bootstrap."""
    output_dir: Path | None = None
    """Where files go; runs/rome-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


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


def demonstrations(config: Config) -> Dataset:
    """The dataset that the options name.

    Raises:
        SceneError: if they name none, and the policy brings none.
    """
    data, policy = config.dataset, config.policy.path
    place = data.repo_id if data.root is None else data.root.expanduser()
    if place is None:
        if not policy.startswith(BUNDLED):
            raise SceneError(
                f"{policy} needs demonstrations: give --dataset.root=… or --dataset.repo_id=…"
            )
        place = policy
    dataset = open_dataset(place, revision=data.revision)
    if not data.episodes:
        return dataset
    kept = tuple(dataset.episode(index) for index in data.episodes)
    return dataclasses.replace(dataset, episodes=kept)


@dataclass(frozen=True)
class Asked:
    """The request in numbers."""

    joint: str
    offset: float
    tolerance: float

    @classmethod
    def by(cls, config: Config, model: HookedACT) -> "Asked":
        """What the options ask for, with what they leave open filled in."""
        joints = model.config.joints
        joint = joints[0] if config.joint is None else config.joint
        offset = config.offset
        if offset is None:
            spread = spread_of(model, ACTION_KEY, torch.zeros(len(joints))).tolist()
            offset = min(10.0, dict(zip(joints, spread, strict=True)).get(joint, 20.0) / 2)
        tolerance = abs(offset) / 10 if config.tolerance is None else config.tolerance
        return cls(joint, offset, tolerance)


def block_of(config: Config, model: HookedACT) -> str:
    """Whose MLP is edited."""
    block = config.block or f"decoder.{model.config.n_decoder_layers - 1}"
    return MLPSite.of(model, block).block


def evaluate_all(config: Config, console: Console) -> Done:
    """Load, read, edit, measure, and say what it took; `console` shows progress."""
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    model = config.policy.files.load()
    dataset, block, asked = demonstrations(config), block_of(config, model), Asked.by(config, model)
    places = places_of(dataset, config.place)
    fitted, looked_at = halves(dataset)
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
    few = lambda some: some[:MOST_SLOW]
    others = {
        kind: few(of_kind(kind)) for kind in (Kind.ANY_JOINT, Kind.SEVERAL_JOINTS, Kind.OTHER_SCENE)
    }
    plan = [(Kind.ONE_JOINT, cases, study.ways())]
    plan += [(Kind.ONE_JOINT, few(cases), study.slow_ways())]
    plan += [("frontier", few(cases), study.frontier())]
    plan += [(kind, some, {SCOPED: study.scoped()}) for kind, some in others.items()]
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
    against = contradicting(either, found, places, max(config.many) // 2)
    tried_rules = rules(study)
    with progress(console, "many edits", 2 * len(tried_rules) * sum(config.many)) as tell:
        many = edit_many(either, found, tried_rules, config.many, scale, places, progress=tell)
        many += edit_many(
            against, found, tried_rules, [len(against)], scale, places,
            contradictory=True, progress=tell,
        )  # fmt: skip
    sites = explained = None
    if config.sites:
        by_site = tried_at_sites(config, model, study, found, cases, asked, console)
        sites, explained = (
            by_site.summary(seed=config.seed),
            by_site.explained_frame(seed=config.seed),
        )
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
    return Done(
        tried[0],
        tuple(tried[1:]),
        ManyEdits(many, config.seed),
        sites,
        explained,
        found,
        study,
        model,
        origin,
    )


def tried_at_sites(
    config: Config,
    model: HookedACT,
    study: Study,
    found: TargetSet,
    cases: Sequence[Case],
    asked: Asked,
    console: Console,
) -> SiteSuccess:
    """The first requests at every block, beside causal tracing."""
    some = cases[: config.sites]
    blocks = [study.statistics, *study.elsewhere]
    order = known_blocks(model)
    blocks.sort(key=lambda one: order.index(one.site.block))
    with progress(console, "edits by block", len(some) * len(blocks)) as tell:
        return site_success(
            model,
            [case.prepared.requests[0] for case in some],
            blocks,
            [[] for _ in some],
            options=SiteOptions(within=asked.tolerance, seed=config.seed),
            limits=study.limits,
            progress=tell,
        )


@contextmanager
def progress(console: Console, what: str, total: int) -> Generator[Callable[[int], None]]:
    """A bar; gives the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


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


def show(done: Done, config: Config, folder: Path) -> None:
    """Write a run's files, and print the report or the JSON."""
    tables = tables_of(done)
    files = write_files(done, tables, folder)
    if config.json:
        rows = lambda table: json.loads(table.to_json(orient="records"))
        shown = {name: rows(table) for name, table in tables.items() if name != "cases"}
        sys.stdout.write(json.dumps(shown | {"provenance": done.origin}) + "\n")
        return
    asked, origin = Asked.by(config, done.model), done.origin
    took = f"{origin['seconds']:.0f} s, {origin['threads']} thread{'s' * (origin['threads'] > 1)}"
    Console().print(
        render_rome(
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
    )


def edit_one(config: Config, console: Console) -> None:
    """Make one edit, say what it does, and export the policy."""
    raise NotImplementedError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    import tyro

    config = tyro.cli(Config, prog="python -m experiments.rome", description=__doc__, args=argv)
    console = Console(stderr=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = config.output_dir or Path("runs") / f"rome-{stamp}"
    try:
        if config.scene is not None:
            edit_one(config, console)
            return 0
        if config.export is not None:
            raise SceneError("--export needs the scene to edit: add --scene EPISODE:FRAME.")
        if config.rollout:
            require_simulator()
        done = evaluate_all(config, console)
        show(done, config, folder)
    except ActlensError as error:
        console.print(Text(plain(f"{type(error).__name__}: {error}"), style="red"))
        return 3
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
