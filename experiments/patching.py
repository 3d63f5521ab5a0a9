"""Which camera patches, layers and heads carry what differs between two scenes?

Without arguments: the bundled policy, pairs of scenes in which only the cube moved, every token at
every depth of the encoder, every head and every sublayer, in both directions. With LeRobot's own
flags it runs on your checkpoint and data:

    python -m experiments.patching --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --scene-a 3:0 --scene-b 7:0
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import ActlensError, SceneError
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.patching import Direction, PatchingResult, SweepOptions, patch_pairs
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.report.heatmaps import save_heatmaps
from actlens.report.patching import render_patching
from actlens.report.plain import plain
from actlens.scene import ScenePair
from actlens.scenes.bundled import load_pairs
from actlens.scenes.dataset import open_dataset
from actlens.scenes.pairs import nearest_pairs, pair_from_addresses

BUNDLED_PAIRS = "so101-cube-moved"


@dataclass(frozen=True)
class Policy:
    """The policy, in LeRobot's words."""

    path: str = "so101-pick-cube"
    """A bundled name, a LeRobot folder, an original-ACT .ckpt, or a hub id."""
    revision: str | None = None
    """Of a hub id."""
    device: str = "cpu"


@dataclass(frozen=True)
class Data:
    """The demonstrations, in LeRobot's words; without any, the bundled scene pairs."""

    root: Path | None = None
    """A LeRobotDataset (v2.1, v3.0) or ALOHA HDF5 folder."""
    repo_id: str | None = None
    """A dataset on the hub, or a bundled dataset's name."""
    revision: str | None = None
    """Of a hub dataset."""
    episodes: tuple[int, ...] = ()
    """Only these episodes; all if empty."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    scene_a: str | None = None
    """The clean scene, EPISODE:FRAME of the dataset."""
    scene_b: str | None = None
    """The corrupt scene, EPISODE:FRAME of the dataset."""
    pairs: int = 8
    """How many scene pairs, where they are not named."""
    frame: int = 0
    """The frame at which pairs are looked for in a dataset."""
    min_effect: float = 1.0
    """Leave out pairs whose actions differ by less (root mean square, dataset units)."""
    max_error: float = 0.002
    """Allowed error of a patched action chunk, as a share of its norm, audited against exact
    patches in every sweep; 0 makes every patch exact, in about twice the time."""
    seed: int = 0
    """Of bootstrap, permutations and audits."""
    output_dir: Path | None = None
    """Where files go; runs/patching-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


def choose_pairs(config: Config, model: HookedACT) -> tuple[ScenePair, ...]:
    """The scene pairs that the options ask for."""
    named = (config.scene_a, config.scene_b)
    if config.dataset.root is None and config.dataset.repo_id is None:
        if any(named):
            raise SceneError(
                "--scene-a and --scene-b name frames of a dataset: add --dataset.root=…"
            )
        pairs = load_pairs(BUNDLED_PAIRS)
        needed = {camera.key for camera in model.config.cameras}
        if not needed <= pairs[0].clean.observation.keys():
            raise SceneError(
                f"{config.policy.path} sees {sorted(needed)}; the bundled scenes do not have these "
                "cameras. Give your demonstrations: --dataset.root=… or --dataset.repo_id=…"
            )
        return pairs[: config.pairs]
    source = config.dataset.root or config.dataset.repo_id
    assert source is not None
    dataset = open_dataset(source, revision=config.dataset.revision)
    if config.dataset.episodes:
        kept = tuple(dataset.episode(index) for index in config.dataset.episodes)
        dataset = dataclasses.replace(dataset, episodes=kept)
    chunk = model.config.chunk
    if config.scene_a is not None and config.scene_b is not None:
        return (pair_from_addresses(dataset, config.scene_a, config.scene_b, chunk=chunk),)
    if any(named):
        raise SceneError("Give both --scene-a and --scene-b, or neither.")
    return nearest_pairs(dataset, chunk=chunk, frame=config.frame, n_pairs=config.pairs)


def run(config: Config, console: Console) -> tuple[PatchingResult, HookedACT, dict]:
    """Load, patch, and say what it took; `console` shows progress."""
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    model = HookedACT.from_pretrained(
        config.policy.path, revision=config.policy.revision, device=config.policy.device
    )
    pairs = choose_pairs(config, model)
    bar = Progress(
        TextColumn("patching"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar, fastest_float32_matmul() as matmul:
        task = bar.add_task("patching")
        result = patch_pairs(
            model,
            pairs,
            options=SweepOptions(min_effect=config.min_effect, max_error=config.max_error),
            seed=config.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    scenes = [scene.observation for pair in result.pairs for scene in (pair.clean, pair.corrupt)]
    facts = {
        "scenes_sha256": scenes_hash(scenes),
        "pairs": [[pair.clean.address, pair.corrupt.address] for pair in result.pairs],
        "matmul": dataclasses.asdict(matmul),
        "keeps_freed_memory": reuses_memory,
        "audits": [dataclasses.asdict(audit) for audit in result.audits],
        "patches": len(result.parts) * len(result.pairs) * (3 if result.null else 2),
    }
    return result, model, provenance(model, config, seconds=time.monotonic() - began, facts=facts)


def write_files(
    result: PatchingResult, model: HookedACT, origin: dict, folder: Path
) -> tuple[Path, ...]:
    """Tables, pictures and provenance of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    table = result.frame()
    table.to_csv(folder / "sites.csv", index=False)
    table.to_parquet(folder / "sites.parquet", index=False)
    result.per_pair().to_parquet(folder / "per_pair.parquet", index=False)
    written = ["sites.csv", "sites.parquet", "per_pair.parquet"]
    for direction in Direction:
        for name, pair in (("first_pair", 0), ("pooled", None)):
            file = f"{direction.value}_{name}.png"
            save_heatmaps(result, model.config, folder / file, direction=direction, pair=pair)
            written.append(file)
    write_json(folder / "provenance.json", origin)
    return tuple(folder / name for name in [*written, "provenance.json"])


def describe(model: HookedACT, path: str) -> str:
    """One line that identifies a policy."""
    config = model.config
    cameras = ", ".join(f"{c.name} {c.height}x{c.width}" for c in config.cameras)
    sha = model.checkpoint.sha256[:8] if model.checkpoint is not None else "in memory"
    return (
        f"{path} · ACT d={config.d_model}, {config.n_encoder_layers}+{config.n_decoder_layers} "
        f"layers, chunk {config.chunk} · {config.n_tokens} tokens ({cameras}) · weights {sha}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    import tyro

    config = tyro.cli(Config, prog="python -m experiments.patching", description=__doc__, args=argv)
    progress = Console(stderr=True)
    try:
        result, model, origin = run(config, progress)
    except ActlensError as error:
        progress.print(Text(plain(f"{type(error).__name__}: {error}"), style="red"))
        return 3
    except KeyboardInterrupt:
        progress.print("interrupted; nothing was written")
        return 130
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = config.output_dir or Path("runs") / f"patching-{stamp}"
    files = write_files(result, model, origin, folder)
    frame = result.frame()
    if config.json:
        rows = json.loads(frame.to_json(orient="records"))
        sys.stdout.write(json.dumps({"sites": rows, "provenance": origin}) + "\n")
        return 0
    took = (
        f"{origin['patches']:,} patches in {origin['seconds']:.0f} s, {origin['threads']} threads"
    )
    Console().print(
        render_patching(
            result,
            frame,
            policy=describe(model, config.policy.path),
            facts=[("run", took)],
            files=files,
            next_steps=[
                "python -m experiments.patching --policy.path=so101-pick-cube-5pos",
                "python -m experiments.patching --policy.path=… --dataset.root=…   your own policy",
            ],
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
