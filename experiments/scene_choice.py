"""Which policy, and which pairs of scenes: the options that several experiments share."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.patching.pair_sources import DatasetPairs, PairFile, PairList, without_pictures
from actlens.patching.pair_work import PolicyFiles
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.scenes.pairs import nearest_pairs, pair_from_addresses

BUNDLED_PAIRS = "so101-cube-moved"
BUNDLED_DATA = "so101-pick-cube"
"""What the names of bundled policies, and of their demonstrations, begin with."""


@dataclass(frozen=True)
class Policy:
    """The policy, in LeRobot's words."""

    path: str = "so101-pick-cube"
    """A bundled name, a LeRobot folder, an original-ACT .ckpt, or a hub id."""
    revision: str | None = None
    """Of a hub id."""
    device: str = "cpu"
    cameras: tuple[str, ...] = ()
    """An original ACT's camera names, in the order of training."""
    image_size: tuple[int, int] | None = None
    """An original ACT's image height and width; 480 640 if not given."""
    n_heads: int | None = None
    """An original ACT's number of attention heads; 8 if not given."""

    @property
    def files(self) -> PolicyFiles:
        """Where every process finds it."""
        here = Path(self.path).expanduser()
        path = str(here.resolve()) if here.exists() else self.path
        return PolicyFiles(
            path, self.revision, self.device, self.cameras, self.image_size, self.n_heads
        )


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
class Choice:
    """A policy and pairs of scenes."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    scenes: Path | None = None
    """A file of pairs, such as `python -m actlens.sim.counterfactual` writes."""
    scene_a: str | None = None
    """The clean scene, EPISODE:FRAME of the dataset."""
    scene_b: str | None = None
    """The corrupt scene, EPISODE:FRAME of the dataset."""
    pairs: int = 8
    """How many scene pairs, where they are not named."""
    frame: int = 0
    """The frame at which pairs are looked for in a dataset."""


def load(config: Choice) -> HookedACT:
    """The policy."""
    return config.policy.files.load()


def open_demonstrations(data: Data, policy: str) -> Dataset:
    """The demonstrations that the options name; a bundled policy's own if they name none.

    Raises:
        SceneError: if they name none for another policy, or an episode that is not there.
    """
    if data.root is not None:
        dataset = open_dataset(data.root.expanduser(), revision=data.revision)
    elif data.repo_id is not None:
        dataset = open_dataset(data.repo_id, revision=data.revision)
    elif policy.startswith(BUNDLED_DATA):
        dataset = open_dataset(policy)
    else:
        raise SceneError(
            f"{policy} needs demonstrations: give --dataset.root=… or --dataset.repo_id=…"
        )
    if data.episodes:
        kept = tuple(dataset.episode(index) for index in data.episodes)
        dataset = dataclasses.replace(dataset, episodes=kept)
    return dataset


def source_of(config: Choice, model: HookedACT) -> PairFile | DatasetPairs:
    """Where the scene pairs are.

    Raises:
        SceneError: if the options name both pairs and demonstrations.
    """
    if config.scenes is not None:
        if config.dataset.root is not None or config.dataset.repo_id is not None:
            raise SceneError("Give either --scenes (pairs) or a dataset to make pairs of.")
        return PairFile(str(config.scenes.expanduser().resolve()))
    if config.dataset.root is not None:
        root = config.dataset.root.expanduser().resolve()  # workers may have another working folder
        return DatasetPairs(root, model.config.chunk, config.dataset.revision)
    if config.dataset.repo_id is not None:
        return DatasetPairs(config.dataset.repo_id, model.config.chunk, config.dataset.revision)
    return PairFile(BUNDLED_PAIRS)


def choose_pairs(config: Choice, model: HookedACT) -> PairList:
    """The addresses of the scene pairs that the options ask for."""
    source = source_of(config, model)
    named = (config.scene_a, config.scene_b)
    if isinstance(source, PairFile):
        if any(named):
            raise SceneError(
                "--scene-a and --scene-b name frames of a dataset: add --dataset.root=…"
            )
        needed = {camera.key for camera in model.config.cameras}
        if not needed <= source.read(0).clean.observation.keys():
            raise SceneError(
                f"{config.policy.path} sees {sorted(needed)}; the scene pairs do not have these "
                "cameras. Give your demonstrations: --dataset.root=… or --dataset.repo_id=…"
            )
        return source.pairs(config.pairs)
    dataset = without_pictures(open_dataset(source.place, revision=source.revision))
    if config.dataset.episodes:
        kept = tuple(dataset.episode(index) for index in config.dataset.episodes)
        dataset = dataclasses.replace(dataset, episodes=kept)
    chunk = model.config.chunk
    if config.scene_a is not None and config.scene_b is not None:
        return source.pairs(
            [pair_from_addresses(dataset, config.scene_a, config.scene_b, chunk=chunk)]
        )
    if any(named):
        raise SceneError("Give both --scene-a and --scene-b, or neither.")
    return source.pairs(
        nearest_pairs(dataset, chunk=chunk, frame=config.frame, n_pairs=config.pairs)
    )


def describe(model: HookedACT, path: str) -> str:
    """One line that identifies a policy."""
    config = model.config
    cameras = ", ".join(f"{c.name} {c.height}x{c.width}" for c in config.cameras)
    sha = model.checkpoint.sha256[:8] if model.checkpoint is not None else "in memory"
    return (
        f"{path} · ACT d={config.d_model}, {config.n_encoder_layers}+{config.n_decoder_layers} "
        f"layers, chunk {config.chunk} · {config.n_tokens} tokens ({cameras}) · weights {sha}"
    )
