"""What does an MLP of the policy remember? Its neurons read as keys and values.

For every neuron: the moments that trigger it, what they share, and what the neuron then adds to the
action; beside shuffled keys, which find something too. Options are those of the other experiments:

    python -m experiments.keyvalue --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --block encoder.2
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.keyvalue import (
    KeyValueAnalysis,
    ShownNeuron,
    analyse_mlp,
    find_triggers,
    run_entries,
    show_neurons,
    strongest,
)
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.provenance import provenance, write_json
from actlens.report.keyvalue import render_keyvalue
from actlens.report.memory_pictures import save_memories
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset
from experiments.command import rows, run_command, with_page, write_report
from experiments.rollouts import require_simulator
from experiments.scene_choice import (
    Data,
    Policy,
    describe,
    open_demonstrations,
)
from experiments.steered import steer_claims


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    block: str | None = None
    """Whose MLP is read: decoder.0, encoder.2, …; the last decoder block if not given."""
    frames: int = 5
    """How many frames of every episode are read."""
    value_scenes: int = 24
    """Scenes over which values are read, each of another episode."""
    top: int = 25
    """Triggers of every neuron."""
    show: int = 6
    """Neurons to list and draw, those with the largest effects; or name them with --neurons."""
    neurons: tuple[int, ...] = ()
    """List and draw these."""
    draws: int = 1999
    """Permutations of triggers."""
    rollout: int = 0
    """Also dose neurons in the simulator, from so many starts (a minute for 2)."""
    seed: int = 0
    """Of shuffled keys, permutations and bootstraps."""
    output_dir: Path | None = None
    """Where files go; runs/keyvalue-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    result: KeyValueAnalysis
    shown: tuple[ShownNeuron, ...]
    model: HookedACT
    dataset: Dataset
    origin: dict


def frames_of(length: int, n: int, turn: int) -> list[int]:
    """So many frames of an episode, evenly apart, shifted from episode to episode."""
    step = max(1, length // n)
    shift = turn * 7 % step  # 7 shares no factor with most steps
    return list(range(shift, length, step)[:n])


def chosen_scenes(dataset: Dataset, chunk: int, n: int) -> Iterator[Scene]:
    """The scenes that are read, episode by episode."""
    for turn, episode in enumerate(dataset.episodes):
        frames = frames_of(episode.length, n, turn)
        yield from dataset.scenes(chunk=chunk, episodes=[episode.index], frames=frames)


def value_scenes(dataset: Dataset, chunk: int, n: int) -> list[Scene]:
    """One scene of each of some episodes, all over their length."""
    episodes = dataset.episodes[:: max(1, len(dataset.episodes) // n)][:n]
    at = [(e.index, e.length * (2 * i + 1) * 5 // 8 % e.length) for i, e in enumerate(episodes)]
    return [dataset.scene(episode, frame, chunk=chunk) for episode, frame in at]


def run(config: Config, console: Console) -> Done:
    """Load, read, look, and say what it took; `console` shows progress."""
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    if config.rollout:
        require_simulator()
    model = config.policy.files.load()
    dataset, chunk = open_demonstrations(config.dataset, config.policy.path), model.config.chunk
    block = config.block or f"decoder.{model.config.n_decoder_layers - 1}"
    if strange := [n for n in config.neurons if not 0 <= n < model.config.d_mlp]:
        raise SceneError(
            f"There is no neuron {strange[0]}: an MLP of this policy has {model.config.d_mlp:,}, "
            "numbered from 0."
        )
    total = sum(len(frames_of(e.length, config.frames, 0)) for e in dataset.episodes)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("reading"), *columns, console=console, transient=True)
    scenes = chosen_scenes(dataset, chunk, config.frames)
    with bar, fastest_float32_matmul() as matmul:
        task = bar.add_task("reading", total=total)
        entries = run_entries(model, scenes, block, progress=lambda n: bar.advance(task, n))
        own, shuffled = find_triggers(
            model, block, entries, top=config.top, draws=config.draws, seed=config.seed
        )
    # Values in full precision: contributions must sum to the action to the last digits.
    some = value_scenes(dataset, chunk, config.value_scenes)
    result = analyse_mlp(model, own, shuffled, some, seed=config.seed)
    shown = show_neurons(
        model,
        block,
        own.reading,
        config.neurons or strongest(result.values, config.show).tolist(),
        lambda source, episode, frame: dataset.scene(episode, frame, chunk=chunk),
    )
    facts = {
        "dataset": dataset.name,
        "block": block,
        "frames": own.reading.n_frames,
        "entries": own.reading.activity.n_entries,
        "matmul": matmul.__dict__,
        "keeps_freed_memory": reuses_memory,
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    return Done(result, shown, model, dataset, origin)


def write_files(done: Done, neurons: pd.DataFrame, folder: Path) -> tuple[Path, ...]:
    """Tables, picture and provenance of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "neurons": neurons,
        "triggers": done.result.triggers(),
        "patterns": done.result.own.patterns.frame(),
        "layer": done.result.layer_frame(),
    }
    files = []
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        files.append(folder / f"{name}.parquet")
    for name in ("neurons", "layer"):
        tables[name].to_csv(folder / f"{name}.csv", index=False)
        files.append(folder / f"{name}.csv")
    if done.shown:
        files.append(folder / "memories.png")
        save_memories(done.result, neurons, done.shown, done.model, files[-1])
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    return tuple(files)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "keyvalue", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    neurons = done.result.neurons()
    # Before the rollouts, which take minutes: whoever ends them keeps what was found.
    files = with_page(folder, write_files(done, neurons, folder))
    policy = describe(done.model, config.policy.path)
    report = _report(done, neurons, files, policy)
    tables = {"neurons": neurons, "layer": done.result.layer_frame()}
    write_report(report, files, origin=done.origin, tables=tables)
    if not config.json:
        Console().print(report)
    steered = None
    if config.rollout:
        some = value_scenes(done.dataset, done.model.config.chunk, 60)
        steered = steer_claims(
            done.result, done.model, some, folder, progress, n=config.rollout, seed=config.seed
        )
        moved = steered.report(policy)
        shown = [*files, *steered.files]
        both = Group(report, Text(), moved)
        write_report(both, files, origin=done.origin, tables=tables, shown=shown)
        if not config.json:
            Console().print(moved)
    if not config.json:
        return
    content = {
        "keys": json.loads(done.result.summary().to_json()),
        "layer": rows(done.result.layer_frame()),
        "neurons": rows(neurons[neurons.neuron.isin([one.neuron for one in done.shown])]),
        "provenance": done.origin,
        **({} if steered is None else steered.rows()),
    }
    sys.stdout.write(json.dumps(content) + "\n")


def _report(
    done: Done, neurons: pd.DataFrame, files: Sequence[Path], policy: str
) -> RenderableType:
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    return render_keyvalue(
        done.result,
        neurons,
        done.shown,
        policy=policy,
        facts=[("data", done.origin["dataset"]), ("run", took)],
        files=files,
        next_steps=[
            "python -m experiments.keyvalue --neurons 17 412   look at these",
            "python -m experiments.keyvalue --rollout 6   does it move the robot that way?",
            "python -m experiments.rome   write into the memory",
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main())
