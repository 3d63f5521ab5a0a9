"""Trains a policy of the series, from scratch: a shared backbone would know the whole table."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from actlens.scenes.dataset import Dataset, open_dataset
from actlens.sim.record import RecordingConfig, Regime, record
from actlens.sim.series.arms import Arm, Run
from actlens.train import POLICY_FOLDER, STATE_FILE, TrainConfig, require_same_run, train

_BUNDLED = {None: "so101-pick-cube", 5: "so101-pick-cube-5pos"}
_RECORDED: dict[int | None, Regime] = {1: "one_position", 9: "nine_positions"}
RECORDED_EPISODES = 50


@dataclass(frozen=True)
class Size:
    """How large the policies are, and how long all of them are trained."""

    steps: int = 1200
    batch_size: int = 16
    downscale: int = 4
    """The factor by which pictures of 240 x 320 are shrunk."""
    cameras: tuple[str, ...] = ("top",)
    lr: float = 5e-4
    warmup: int = 100
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    n_encoder_layers: int = 2
    n_action_steps: int = 10
    threads: int = 1


def dataset_of(arm: Arm, folder: Path) -> Dataset:
    """The demonstrations that an arm is drawn from: bundled, or recorded by `record_missing`."""
    if arm.positions in _BUNDLED:
        return open_dataset(_BUNDLED[arm.positions])
    return open_dataset(_recording(arm, folder).output_dir)


def record_missing(arms: tuple[Arm, ...], folder: Path, console: Console) -> None:
    """Record the demonstrations that are not bundled; an interrupted recording goes on.

    Raises:
        RecordingError: if a folder holds something else.
    """
    for arm in arms:
        if arm.positions in _RECORDED:
            config = _recording(arm, folder)
            if not (config.output_dir / "meta" / "info.json").is_file():
                record(config, console)


def _recording(arm: Arm, folder: Path) -> RecordingConfig:
    regime = _RECORDED[arm.positions]
    return RecordingConfig(
        folder / "datasets" / regime.replace("_", "-"),
        episodes=RECORDED_EPISODES,
        regime=regime,
        resume=True,
    )


def train_config(run: Run, folder: Path, size: Size) -> TrainConfig:
    """How a run is trained: alike for all but what they are shown and their seed."""
    dataset = dataset_of(run.arm, folder)
    bundled = run.arm.positions in _BUNDLED
    return TrainConfig(
        dataset=_BUNDLED[run.arm.positions] if bundled else str(dataset.path),
        output_dir=folder / "runs" / run.name,
        episodes=run.episodes(dataset),
        cameras=size.cameras,
        steps=size.steps,
        batch_size=size.batch_size,
        lr=size.lr,
        warmup=size.warmup,
        n_action_steps=size.n_action_steps,
        d_model=size.d_model,
        n_heads=size.n_heads,
        d_mlp=size.d_mlp,
        n_encoder_layers=size.n_encoder_layers,
        use_vae=False,
        downscale=size.downscale,
        seed=run.seed,
        save_every=120.0,
        cache=folder / "cache",
    )


def trained(run: Run, folder: Path, size: Size, console: Console | None = None) -> Path:
    """The run's policy; trained now, or to the end, if it is not there yet.

    Raises:
        ConfigError: if its folder holds a run of another size.
    """
    config = train_config(run, folder, size)
    policy = config.output_dir / POLICY_FOLDER
    require_same_run(config)
    if not (policy / "config.json").is_file():
        policy = train(config, console)
        # Ten times the policy's own size, and of use to an unfinished run alone.
        (config.output_dir / STATE_FILE).unlink()
    return policy
