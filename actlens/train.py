"""Train an ACT policy on a LeRobot dataset and write a folder that LeRobot itself can run.

`python -m actlens.train --dataset so101-pick-cube --output-dir outputs/mine` reproduces the bundled
policy. The loss is LeRobot's (masked L1 plus `kl_weight` times the KL divergence); batch norm is
trained and then frozen into the buffers that every ACT checkpoint has. Every step draws from its
own seed, so an interrupted run that resumes ends where an uninterrupted one would.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from actlens.checkpoints import Checkpoint, save_checkpoint
from actlens.config import ACTION_KEY, STATE_KEY, ACTConfig, Backbone
from actlens.errors import CheckpointError, ConfigError
from actlens.model.act import HookedACT
from actlens.model.device import usable_device
from actlens.model.embed import Inputs
from actlens.model.lerobot_names import from_lerobot
from actlens.normalization import Affine, NormalizationMode, Normalizer
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.training_data import TrainingData, load_training_data, statistics_of

EPS = 1e-8
LOG_FILE = "training.jsonl"
CONFIG_FILE = "train_config.json"
STATE_FILE = "training_state.pt"
POLICY_FOLDER = "pretrained_model"

_NOT_THE_RUN = frozenset({"resume", "save_every", "log_every", "device", "cache"})
"""Options that may change when a run goes on."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; defaults reproduce the bundled policies."""

    dataset: str
    """A bundled dataset's name, a LeRobotDataset or ALOHA folder, or a hub id."""
    output_dir: Path
    """Where checkpoints, the loss curve and `pretrained_model/` go."""
    episodes: tuple[int, ...] = ()
    """Only these episodes; all if empty."""
    cameras: tuple[str, ...] = ()
    """Only these cameras, by their short names (`top`); all if empty."""
    steps: int = 3000
    batch_size: int = 8
    lr: float = 3e-4
    """Peak learning rate of AdamW, reached after `warmup` steps, falling over the last 40 %."""
    warmup: int = 200
    weight_decay: float = 1e-4
    grad_clip: float = 10.0
    kl_weight: float = 10.0
    state_noise: float = 0.02
    """Standard deviation of noise on the normalised state, so that it is not trusted blindly."""
    chunk: int = 50
    """Control steps that one inference predicts."""
    n_action_steps: int = 15
    """Control steps that are carried out before the next inference."""
    backbone: Backbone = Backbone.RESNET18
    d_model: int = 256
    n_heads: int = 8
    d_mlp: int = 1024
    n_encoder_layers: int = 3
    n_decoder_layers: int = 1
    use_vae: bool = True
    n_vae_encoder_layers: int = 1
    dropout: float = 0.1
    downscale: int = 1
    """Train on images shrunk by this whole factor: a cheap first stage to warm-start from."""
    cache: Path | None = None
    """A folder that keeps the decoded pictures of whole datasets, for many runs on the same."""
    freeze_norm: bool = False
    """Keep the batch norms of `init_from` frozen, as every ACT checkpoint has them at inference."""
    init_from: Path | None = None
    """Warm start: a policy whose tensors of equal name and shape are taken over."""
    seed: int = 0
    save_every: float = 120.0
    """Seconds between training checkpoints."""
    log_every: int = 50
    device: str = "cpu"
    """Where to compute; the data stays in memory and goes there batch by batch."""
    bf16: bool = True
    """Compute in bfloat16 where autocast deems it safe; weights stay float32."""
    half_weights: bool = True
    """Write matrices as float16: half the size, and the policy is evaluated as written."""
    resume: bool = True
    """Go on from `output_dir` if it holds an unfinished run of the same configuration."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then a cosine fall over the last 40 % to 1 % of the peak."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = max(0.0, (step / config.steps - 0.6) / 0.4)
    return config.lr * rise * (0.505 + 0.495 * math.cos(math.pi * fall))


def architecture(config: TrainConfig, dataset: Dataset) -> ACTConfig:
    """The network that a training configuration asks for on a dataset."""
    return ACTConfig(
        cameras=tuple(
            replace(c, height=c.height // config.downscale, width=c.width // config.downscale)
            for c in dataset.cameras
        ),
        action_dim=len(dataset.action_names),
        state_dim=len(dataset.state_names) or None,
        chunk=config.chunk,
        n_action_steps=config.n_action_steps,
        backbone=config.backbone,
        d_model=config.d_model,
        n_heads=config.n_heads,
        d_mlp=config.d_mlp,
        n_encoder_layers=config.n_encoder_layers,
        n_decoder_layers=config.n_decoder_layers,
        use_vae=config.use_vae,
        n_vae_encoder_layers=config.n_vae_encoder_layers,
        dropout=config.dropout,
        joints=dataset.action_names,
    )


@dataclass(frozen=True)
class Losses:
    """The loss that is minimised and its parts: L1 per valid element (normalised), KL in nats."""

    total: Tensor
    l1: Tensor
    kl: Tensor


def losses(model: HookedACT, data: TrainingData, frames: np.ndarray, config: TrainConfig) -> Losses:
    """LeRobot's ACT loss on the given frames; draws noise from torch's generator."""
    device = model.action_head.weight.device
    action, is_pad = (x.to(device) for x in data.chunks(frames, config.chunk))
    index = torch.from_numpy(frames)
    normalize = model.normalizer.normalize
    images = tuple(
        normalize(camera.key, image[index].to(device).float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        for camera, image in zip(model.config.cameras, data.images, strict=True)
    )
    state = None
    if data.state is not None:
        state = normalize(STATE_KEY, data.state[index].to(device))
        state = state + config.state_noise * torch.randn_like(state)
    inputs = Inputs(images, state, None, len(frames))
    target = normalize(ACTION_KEY, action)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        latent, kl = None, target.new_zeros(())
        if model.config.use_vae:
            mu, log_var = (x.float() for x in model.vae.posterior(target, is_pad, state))
            latent = mu + (log_var / 2).exp() * torch.randn_like(mu)
            kl = (-0.5 * (1 + log_var - mu.square() - log_var.exp())).sum(-1).mean()
        predicted = model.predict(inputs, latent).float()
    l1 = (F.l1_loss(predicted, target, reduction="none") * ~is_pad[..., None]).mean()
    return Losses(l1 + config.kl_weight * kl, l1.detach(), kl.detach())


def batches(n_frames: int, config: TrainConfig, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Step numbers and their frames: shuffled epochs, a function of (seed, step) alone."""
    per_epoch = max(n_frames // config.batch_size, 1)
    order, epoch = np.arange(n_frames), -1
    for step in range(start, config.steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([config.seed, epoch]).permutation(n_frames)
        at = (step % per_epoch) * config.batch_size
        yield step, order[at : at + config.batch_size]


def to_checkpoint(
    model: HookedACT, stats: Mapping[str, Mapping[str, Tensor]], config: TrainConfig
) -> Checkpoint:
    """The trained network as a LeRobot checkpoint: batch norm frozen, matrices in 16 bits."""
    from actlens.checkpoints.architecture import expected_shapes

    present = model.state_dict()
    weights = {}
    for name in expected_shapes(model.config):
        value = present[from_lerobot(name)].detach().cpu().contiguous()
        weights[name] = value.half() if config.half_weights and value.ndim > 1 else value.clone()
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} is not finite after training: lower the learning rate.")
    return Checkpoint(
        model.config,
        weights,
        affines(stats),
        stats,
        EPS,
        raw_config={"type": "act", "kl_weight": config.kl_weight},
        source=config.output_dir.name,  # its path means nothing on another machine
    )


def affines(stats: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Affine]:
    """The normalisation of every feature from its mean and standard deviation."""
    return {
        key: Affine.from_stats(NormalizationMode.MEAN_STD, entries, eps=EPS, what=key)
        for key, entries in stats.items()
    }


def _jsonable(config: TrainConfig) -> dict[str, object]:
    """As it reads when it comes back from a JSON file."""
    return json.loads(json.dumps(asdict(config), default=str))


def _replace_file(path: Path, write) -> None:
    """Write beside the file and move into place: an interruption leaves the old one whole."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    write(temporary)
    temporary.replace(path)


def require_same_run(config: TrainConfig) -> None:
    """Make sure that a folder holds nothing, or a run of this configuration.

    Raises:
        ConfigError: if it holds something else.
    """
    folder, described = config.output_dir, config.output_dir / CONFIG_FILE
    if not described.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else: choose another --output-dir.")
        return
    asked = _jsonable(config)
    # Runs of older versions were always on all episodes and cameras.
    found = {"episodes": [], "cameras": []} | json.loads(described.read_text())
    differing = sorted(
        key
        for key in asked.keys() | found.keys()
        if asked.get(key) != found.get(key) and key not in _NOT_THE_RUN
    )
    if differing or not config.resume:
        raise ConfigError(
            f"{folder} holds another run (it differs in {', '.join(differing) or 'nothing'}): "
            "choose another --output-dir."
        )


def _resume(config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load an unfinished run's state; the step to go on from."""
    require_same_run(config)
    folder, asked = config.output_dir, _jsonable(config)
    folder.mkdir(parents=True, exist_ok=True)
    _replace_file(folder / CONFIG_FILE, lambda path: path.write_text(json.dumps(asked, indent=2)))
    if not (folder / STATE_FILE).exists():
        return 0
    saved = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _warm_start(model: HookedACT, source: Path) -> int:
    """Take over every tensor of equal name and shape; the number taken."""
    donor = HookedACT.from_pretrained(source).state_dict()
    own = model.state_dict()
    taken = {k: v for k, v in donor.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(taken, strict=False)
    return len(taken)


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Train to the end (or go on from where a run stopped) and write the policy.

    Returns:
        The `pretrained_model` folder.

    Raises:
        ConfigError: if `output_dir` holds a different run, or the dataset cannot be learned from.
        DeviceError: if there is no such device here.
    """
    if config.freeze_norm and config.init_from is None:
        raise ConfigError("--freeze-norm needs --init-from: untrained norms would stay untrained.")
    device = usable_device(config.device)
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        dataset = open_dataset(config.dataset)
        if config.cameras:
            dataset = replace(dataset, cameras=tuple(map(dataset.camera, config.cameras)))
        torch.manual_seed(config.seed)
        model = HookedACT(architecture(config, dataset), frozen_norm=config.freeze_norm).train()
        model.embed.to(memory_format=torch.channels_last)
        if config.init_from is not None:
            console.print(f"warm start: {_warm_start(model, config.init_from)} tensors taken over")
        model.to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), config.lr, weight_decay=config.weight_decay
        )
        start = _resume(config, model, optimizer)
        data = load_training_data(
            dataset, config.downscale, progress, episodes=config.episodes, cache=config.cache
        )
        stats = statistics_of(data, dataset)
        model.normalizer = Normalizer(affines(stats)).to(device)
        task = progress.add_task("training", total=config.steps, completed=start)
        _loop(model, optimizer, data, config, start, progress, task)
    folder = config.output_dir / POLICY_FOLDER
    return save_checkpoint(to_checkpoint(model, stats, config), folder)


def _loop(
    model: HookedACT,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    config: TrainConfig,
    start: int,
    progress: Progress,
    task,
) -> None:
    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        _replace_file(config.output_dir / STATE_FILE, lambda path: torch.save(state, path))

    began = saved_at = time.monotonic()
    recent: list[Losses] = []
    log = config.output_dir / LOG_FILE
    for step, frames in batches(len(data.action), config, start):
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss = losses(model, data, frames, config)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        recent.append(loss)
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            row = {
                "step": done,
                "l1": float(torch.stack([x.l1 for x in recent]).mean()),
                "kl": float(torch.stack([x.kl for x in recent]).mean()),
                "lr": learning_rate(step, config),
                "seconds": round(time.monotonic() - began, 1),
            }
            recent = []
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            progress.update(task, description=f"training, L1 {row['l1']:.3f} KL {row['kl']:.3f}")
        progress.update(task, completed=done)
        if time.monotonic() - saved_at > config.save_every or done == config.steps:
            save(done)
            saved_at = time.monotonic()


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train."""
    import tyro

    config = tyro.cli(TrainConfig, prog="python -m actlens.train", description=__doc__, args=argv)
    console = Console()
    folder = train(replace(config, output_dir=Path(config.output_dir)), console)
    console.print(f"policy written to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
