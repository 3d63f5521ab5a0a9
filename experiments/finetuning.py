"""What must change for a policy to reach new places? One part is trained, all else stays.

Decoder MLP, cross-attention, head, encoder: each with all of its numbers, and each with as many as
the smallest; beside a rank-one edit of the MLP. Half of the demonstrations at new places are
trained on, the others measured; then halves exchange.

    python -m experiments.finetuning
    python -m experiments.finetuning --policy.path=so101-pick-cube-5pos --rollout 20
    python -m experiments.finetuning --policy.path=you/act --dataset.root=known --new.root=new
"""

import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.finetuning import (
    NEW,
    QUICK,
    Budget,
    Finetuning,
    Material,
    Options,
    Recipe,
    bundled_material,
    claims_of,
    finetune,
    large_ways,
    standard_ways,
)
from actlens.finetuning.material import ANYWHERE, FAR, FIVE_PLACES, evenly, scenes_of
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.report.finetuning import render_finetuned_rollouts, render_finetuning
from experiments.command import rows, run_command, with_page, write_report
from experiments.rollouts import STEPS, require_simulator
from experiments.scene_choice import Data, Policy, describe, open_demonstrations


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """What the policy was trained on: measured, rehearsed; a bundled policy's own if not given."""
    new: Data = field(default_factory=Data)
    """Demonstrations at new places; a bundled policy's own choice if not given."""
    episodes: int | None = None
    """At most so many of them, half of which are trained on; 30, or 20 if quick."""
    demonstrations: int | None = None
    """Train on no more than so many episodes of a half."""
    every: int = 10
    """Frames between scenes that are trained on; twice as many elsewhere."""
    steps: int | None = None
    """Of every training; 100, or 50 if quick."""
    rates: tuple[float, ...] = ()
    """Step sizes to choose from, in norms of the part; 0.01 0.03 0.1, or 0.02 0.1 if quick."""
    rehearsal: float = 0.0
    """Scenes of old demonstrations for every new one in a batch."""
    seeds: int = 1
    """Trainings of every part."""
    quick: bool = False
    """A first look, in half the time or less."""
    encoder: bool = False
    """Also the whole encoder, which takes about as long as all others together."""
    upper_bound: bool = False
    """Also everything behind the tokens at once."""
    rollout: int = 0
    """Roll out from so many starts at new and at old places, without and with every part."""
    save: Path | None = None
    """Write the policies with the decoder MLP, trained as a whole, for LeRobot; one a half."""
    seed: int = 0
    """Of batches, subspaces, splits and starts."""
    output_dir: Path | None = None
    """Where files go; runs/finetuning-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


def material_of(config: Config, model: HookedACT) -> Material:
    """The scenes that the options ask for.

    Raises:
        SceneError: if there are no demonstrations at new places for a policy of one's own.
    """
    n_new = config.episodes or (20 if config.quick else 30)
    if config.new.root is None and config.new.repo_id is None:
        if config.policy.path not in (ANYWHERE, FIVE_PLACES):
            raise SceneError(
                f"{config.policy.path} needs demonstrations at new places: give --new.root=… or "
                "--new.repo-id=…"
            )
        return bundled_material(
            model, config.policy.path, n_new=n_new, n_elsewhere=n_new // 3, every=config.every
        )
    known = open_demonstrations(config.dataset, config.policy.path)
    new = open_demonstrations(config.new, "")
    chunk, n = model.config.chunk, max(2, n_new // 3)
    sparse = lambda episodes: scenes_of(known, evenly(episodes, n), chunk, 2 * config.every)
    return Material(
        scenes_of(new, evenly(new.episodes, n_new), chunk, config.every),
        {"old places": sparse(known.episodes[::2])},
        sparse(known.episodes[1::2]),
    )


@contextmanager
def _bar(console: Console) -> Generator[Callable[[str, int, int], None]]:
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as p:
        task = p.add_task("running scenes")
        yield lambda what, done, total: p.update(
            task, description=what, completed=done, total=total
        )


def run(config: Config, console: Console) -> tuple[Finetuning, HookedACT, dict]:
    """Load, train, measure, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    model = config.policy.files.load()
    material = material_of(config, model)
    ways = standard_ways(model)
    if config.encoder or config.upper_bound:
        ways += large_ways(model, upper_bound=config.upper_bound)
    usual = QUICK.recipe if config.quick else Recipe()
    recipe = replace(
        usual,
        steps=config.steps or usual.steps,
        rates=config.rates or usual.rates,
        rehearsal=config.rehearsal,
        seed=config.seed,
    )
    options = Options(recipe, config.demonstrations, config.seeds)
    with _bar(console) as progress, fastest_float32_matmul():
        found = finetune(model, material, ways, options, progress=progress)
    facts = {
        "new": len(material.new),
        "elsewhere": {name: len(scenes) for name, scenes in material.elsewhere.items()},
        "scenes_sha256": scenes_hash([scene.observation for scene in material.new]),
    }
    seconds = time.monotonic() - began
    return found, model, provenance(model, config, seconds=seconds, facts=facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "finetuning", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, console: Console) -> None:
    if config.rollout:
        require_simulator()
    found, model, origin = run(config, console)
    folder.mkdir(parents=True, exist_ok=True)
    table, claims = found.frame(), claims_of(found)
    files = [folder / "errors.csv", folder / "provenance.json"]
    table.to_csv(files[0], index=False)
    write_json(files[1], origin)
    if config.save is not None:
        files += _save(found, model, config.save)
    listed = with_page(folder, files)
    report = _report(config, found, model, origin, listed)
    write_report(report, listed, origin=origin, tables={"errors": table})
    if not config.json:
        Console().print(report)
    rolled = None
    if config.rollout:
        from actlens.sim.finetuned_rollouts import finetuned_rollouts, finetuned_starts

        starts = finetuned_starts(config.rollout, _places(config), seed=config.seed)
        with _bar(console) as bar:
            advance = lambda done, total: bar("rollouts", done, total)
            rolling = finetuned_rollouts(
                model, found, starts, steps=STEPS, seed=config.seed, progress=advance
            )
        rolling.frame().to_parquet(folder / "rollouts.parquet", index=False)
        rolled = rolling.summary()
        moved = render_finetuned_rollouts(rolled, steps=STEPS)
        both = Group(report, Text(), moved)
        write_report(both, listed, origin=origin, tables={"errors": table})
        if not config.json:
            Console().print(moved)
    if config.json:
        content = {
            "errors": rows(table),
            "claims": [vars(claim) for claim in claims],
            "rollouts": [] if rolled is None else rows(rolled),
            "provenance": origin,
        }
        sys.stdout.write(json.dumps(content) + "\n")


def _report(
    config: Config, found: Finetuning, model: HookedACT, origin: dict, files: Sequence[Path]
) -> RenderableType:
    n, steps = config.demonstrations or found.n_trained, found.options.recipe.steps
    rehearsed = f", {config.rehearsal:g} old scenes for each new one" if config.rehearsal else ""
    return render_finetuning(
        found.frame(),
        claims_of(found),
        found.locality,
        policy=describe(model, config.policy.path),
        facts=[
            (NEW, f"{min(n, found.n_trained)} demonstrations trained on, halves exchanged"),
            (
                "training",
                f"{steps} steps, {config.seeds} seeds{rehearsed}",
            ),
            ("run", f"{origin['seconds']:.0f} s, {origin['threads']} threads"),
        ],
        files=files,
        next_steps=[
            "python -m experiments.finetuning --rehearsal 1   with old demonstrations",
            "python -m experiments.finetuning --rollout 20   in closed loop",
        ],
    )


def _save(found: Finetuning, model: HookedACT, folder: Path) -> list[Path]:
    mlp = found.outcome("decoder MLP", Budget.WHOLE)
    if mlp is None:
        return []
    halves = zip("ab", mlp.tuned, strict=True)
    return [one.policy(model).save_pretrained(folder / half) for half, one in halves]


def _places(config: Config) -> dict:
    """Where rollouts begin."""
    from actlens.sim.finetuned_rollouts import at_five_places, far_from_five, in_region
    from actlens.sim.regions import Region

    if config.policy.path == FIVE_PLACES:
        return {NEW: far_from_five(FAR), "old places": at_five_places}
    return {NEW: in_region(Region.STRIP), "old places": in_region(Region.TRAIN)}


if __name__ == "__main__":
    raise SystemExit(main())
