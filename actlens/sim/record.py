"""Records demonstrations of the scripted expert: `python -m actlens.sim.record --output-dir …`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actlens.errors import ActlensError
from actlens.sim import dataset_writer
from actlens.sim.dataset_writer import DatasetFacts, Episode
from actlens.sim.environment import CAMERAS, FPS, TASK, PickCube
from actlens.sim.expert import PHASES, STEPS, plan
from actlens.sim.regions import (
    FIVE_POSITIONS,
    NINE_POSITIONS,
    ONE_POSITION,
    Region,
    region_of,
    sample,
)
from actlens.sim.video import VideoSettings

NOISE = np.array([1.5, 1.5, 1.5, 1.5, 1.5, 0.0])
"""Standard deviation of the disturbance of executed actions: degrees, and no gripper percent."""
NOISE_MEMORY = 0.8
"""Share of the disturbance that carries over from one step to the next."""

Regime = Literal["table", "one_position", "five_positions", "nine_positions", "unseen"]
FIXED = {
    "one_position": ONE_POSITION,
    "five_positions": FIVE_POSITIONS,
    "nine_positions": NINE_POSITIONS,
}
"""Regimes in which the cube stands at few places."""
UNSEEN = (Region.TRAIN, Region.HELD_OUT, Region.STRIP)
"""What the episodes of a test set ask of a policy: nothing new, interpolation, extrapolation."""

_JOURNAL = "recording.json"


class RecordingError(ActlensError, RuntimeError):
    """The output folder cannot take this recording."""


@dataclass(frozen=True)
class RecordingConfig:
    """What to record, and where."""

    output_dir: Path
    """Folder of the dataset; new, empty, or an interrupted recording together with --resume."""
    episodes: int = 100
    """Successful demonstrations to keep."""
    regime: Regime = "table"
    """Cube anywhere in the demonstrated cells of the table; at one, five or nine fixed places in
    turn; or, to test on, a third each in the demonstrated cells, in cells between them and in the
    strip."""
    seed: int = 0
    """Seed of everything random; the same seed gives the same dataset."""
    height: int = 240
    """Height of the pictures in pixels."""
    width: int = 320
    """Width of the pictures in pixels."""
    resume: bool = False
    """Continue an interrupted recording of the same settings; finished episodes are kept."""
    video: VideoSettings = field(default_factory=VideoSettings)
    """Compression of the pictures."""


@dataclass
class Journal:
    """How far a recording has come; stored beside the staged episodes after every attempt."""

    settings: dict
    attempts: int = 0
    """Attempts so far, failed ones included; the next attempt's number."""
    failed: int = 0
    """Attempts that did not lift the cube; not in the dataset."""


def record(config: RecordingConfig, console: Console) -> None:
    """Records until `config.episodes` demonstrations have succeeded, and writes the dataset.

    Raises:
        RecordingError: if the folder holds something else, or a recording with other settings.
    """
    journal = _open(config)
    facts = _facts(config, journal)
    env = PickCube(height=config.height, width=config.width)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        kept = dataset_writer.staged_episodes(config.output_dir)
        task = progress.add_task("Recording episodes", total=config.episodes, completed=kept)
        while kept < config.episodes:
            if journal.failed > kept + 20:
                raise RecordingError(
                    f"{journal.failed} of {journal.attempts} attempts failed; the expert does not "
                    "fit this scene. The finished episodes are kept."
                )
            episode = demonstrate(env, config, attempt=journal.attempts, index=kept)
            if episode is not None:
                dataset_writer.stage(config.output_dir, kept, episode, facts)
                kept += 1
            journal.attempts += 1
            journal.failed = journal.attempts - kept
            _store(config, journal)
            progress.update(task, completed=kept)
    env.close()
    dataset_writer.finish(config.output_dir, _facts(config, journal))
    console.print(
        f"{config.episodes} episodes of {STEPS} frames in {config.output_dir}; "
        f"{journal.failed} failed and were left out."
    )


def demonstrate(
    env: PickCube, config: RecordingConfig, *, attempt: int, index: int
) -> Episode | None:
    """One attempt of the expert, or None if the cube was not in the air at its end.

    The executed actions carry a smooth disturbance until half way down, so that the demonstrations
    also show the way back to the path; the recorded actions are the expert's clean ones.

    Args:
        env: the environment, with pictures.
        config: regime and seed.
        attempt: number of the attempt, which together with the seed determines everything random.
        index: number of the episode this attempt is to become; it selects the fixed position.
    """
    rng = np.random.default_rng([config.seed, attempt])
    if config.regime in FIXED:
        places = FIXED[config.regime]
        cube_xy = np.array(places[len(places) * index // config.episodes])
    elif config.regime == "unseen":
        cube_xy = sample(UNSEEN[len(UNSEEN) * index // config.episodes], rng)
    else:
        cube_xy = sample(Region.TRAIN, rng)
    seed = int(rng.integers(2**31))
    observation, facts = env.reset(seed=seed, options={"cube_xy": cube_xy})
    actions = plan(observation["observation.state"], cube_xy, facts["cube"][3])
    disturbance = disturbances(rng)
    states, cubes = [], []
    pictures: dict[str, list[np.ndarray]] = {f"observation.images.{c}": [] for c in CAMERAS}
    for action, offset in zip(actions, disturbance, strict=True):
        states.append(observation["observation.state"])
        cubes.append(facts["cube"])
        for key, seen in pictures.items():
            seen.append(observation[key])
        observation, _, _, _, facts = env.step(action + offset)
    if not facts["success"]:
        return None
    return Episode(
        state=np.stack(states),
        action=actions,
        cube=np.stack(cubes).astype(np.float32),
        pictures={key: np.stack(seen) for key, seen in pictures.items()},
        region=region_of(*cube_xy).value,
        seed=seed,
    )


def disturbances(rng: np.random.Generator) -> np.ndarray:
    """Smooth random offsets of the executed joint targets, `(75, 6)`; zero before the grasp."""
    hover, descend = PHASES[0], PHASES[1]
    last = descend.first + descend.steps // 2
    fade = np.clip((last - np.arange(STEPS)) / (last - hover.last), 0.0, 1.0)
    fresh = NOISE * np.sqrt(1 - NOISE_MEMORY**2)
    offsets = np.zeros((STEPS, len(NOISE)))
    current = np.zeros(len(NOISE))
    for step in range(STEPS):
        current = NOISE_MEMORY * current + fresh * rng.standard_normal(len(NOISE))
        offsets[step] = fade[step] * current
    return offsets


def _settings(config: RecordingConfig) -> dict:
    """Everything that decides the dataset's content, as JSON values."""
    kept = {"episodes", "regime", "seed", "height", "width", "video"}
    return {key: value for key, value in asdict(config).items() if key in kept}


def _open(config: RecordingConfig) -> Journal:
    """The journal of a fresh recording, or of the interrupted one that is to be resumed."""
    folder, path = config.output_dir, config.output_dir / dataset_writer.STAGING / _JOURNAL
    journal = Journal(_settings(config))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        _store(config, journal)
        return journal
    if not path.is_file():
        raise RecordingError(
            f"{folder} is not empty and holds no interrupted recording; choose another folder."
        )
    if not config.resume:
        raise RecordingError(f"{folder} holds an interrupted recording; add --resume to go on.")
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["settings"] != journal.settings:
        raise RecordingError(
            f"{folder} was begun with {stored['settings']}, not with {journal.settings}; resume "
            "with the same settings."
        )
    journal = Journal(**stored)
    missing = journal.attempts - journal.failed - dataset_writer.staged_episodes(folder)
    if missing > 0:
        raise RecordingError(f"{folder} has lost {missing} of its finished episodes; start afresh.")
    # The interruption may have come between staging an episode and writing the journal.
    journal.attempts -= missing
    return journal


def _store(config: RecordingConfig, journal: Journal) -> None:
    path = config.output_dir / dataset_writer.STAGING / _JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(journal)), encoding="utf-8")
    fresh.replace(path)


def _facts(config: RecordingConfig, journal: Journal) -> DatasetFacts:
    provenance = {
        **_settings(config),
        "source": "python -m actlens.sim.record",
        "task": TASK,
        "action": "the scripted expert's clean joint target; the executed one was disturbed",
        "disturbance": {
            "standard_deviation": NOISE.tolist(),
            "carried_over": NOISE_MEMORY,
            "until": "half way through the descent, fading from its start",
        },
        "phases": {phase.name: [phase.first, phase.last] for phase in PHASES},
        "attempts": journal.attempts,
        "failed_attempts": journal.failed,
    }
    return DatasetFacts(
        task=TASK,
        robot_type="so101_simulated",
        fps=FPS,
        video=config.video,
        card=_card(config, journal),
        provenance=provenance,
    )


def _card(config: RecordingConfig, journal: Journal) -> str:
    places = {
        "table": "anywhere in the demonstrated cells of the table (`actlens.sim.regions`)",
        "one_position": "at one fixed place",
        "five_positions": "at five fixed places, the same number of times each",
        "nine_positions": "at nine fixed places, about the same number of times each",
        "unseen": "a third of the episodes each in demonstrated cells (other positions than a "
        "training set of another seed has), in held-out cells between them, and in the strip "
        "beyond them (`region` in `meta/episodes`); to test on, not to train on",
    }
    phases = ", ".join(f"{phase.name} {phase.first}-{phase.last}" for phase in PHASES)
    return f"""# Pick the cube, {config.regime.replace("_", " ")}

{config.episodes} simulated demonstrations of "{TASK}" by a scripted expert on an arm with the
joints of an SO-101, made of primitives in MuJoCo. Format: LeRobotDataset v3.0.

- **Cube**: {places[config.regime]}; heading within 0.25 rad of the x axis.
- **Episode**: {STEPS} frames at {FPS} Hz; {phases}.
- **observation.state**: joint positions in degrees, gripper 0 (closed) to 100 (open).
- **action**: the expert's *clean* joint target. The executed target differed from it by a smooth
  random offset of {NOISE[0]} degrees (standard deviation) per joint until half way down, so that
  the states lie around the expert's path and the actions lead back to it.
- **label.cube**: the cube's x, y, z in metres and yaw in radians, for analysis; not for a policy.
- **Pictures**: two cameras, {config.height} x {config.width}, H.264 {config.video.pixel_format} at
  crf {config.video.crf}, one keyframe per episode. `meta/stats.json` describes the decoded
  pictures.
- **Kept**: episodes that end with the cube more than 4 cm up; {journal.failed} of
  {journal.attempts} attempts did not and were left out.
- **Reproduce**: `python -m actlens.sim.record --episodes {config.episodes} --regime \
{config.regime} --seed {config.seed} --height {config.height} --width {config.width} --output-dir …`
"""


def main() -> None:
    """Runs the command line."""
    console = Console()
    try:
        record(tyro.cli(RecordingConfig, description=__doc__), console)
    except ActlensError as error:
        console.print(f"[red]{error}[/red]")
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        console.print("Interrupted; the finished episodes are kept. Continue with --resume.")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
