"""The options of `python -m experiments.rome`, and what they name."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.model.units import spread_of
from actlens.rome.request import Offset
from actlens.rome.situations import CUBE
from actlens.text import quoted
from experiments.scene_choice import Data, Policy


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
    """By how much, in dataset units. If not given: 10, as for degrees, or half of the joint's
    standard deviation in the data where that is below 10."""
    tolerance: float | None = None
    """Dataset units by which an action may miss its target; a tenth of the offset if not given."""
    targets: int = 50
    """Scenes to edit, each of another episode; at most half of the episodes."""
    place: tuple[str, ...] = CUBE
    """Labels, in metres, that say where an episode takes place. Episodes without them are near one
    another if their demonstrations are."""
    many: tuple[int, ...] = (1, 4, 16)
    """How many requests to grant at once."""
    sites: int = 3
    """Requests to try at every block, beside causal tracing; 0 for none."""
    scene: str | None = None
    """Make one edit, in the scene EPISODE:FRAME, instead of an evaluation."""
    export: Path | None = None
    """With --scene: where the edited policy goes, as a LeRobot checkpoint."""
    rollout: int = 0
    """Also try edits in closed loop, so many, in the simulator (extra `sim`)."""
    exchange_halves: bool = False
    """Take statistics from the episodes that are otherwise looked at, and the other way round."""
    seed: int = 0
    """Of targets, requests and the bootstrap."""
    output_dir: Path | None = None
    """Where files go; runs/rome-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Asked:
    """The request in numbers."""

    joint: str
    offset: float
    tolerance: float

    @classmethod
    def by(cls, config: Config, model: HookedACT) -> "Asked":
        """What the options ask for, with what they leave open filled in.

        Raises:
            EditError: if the policy has no such joint.
        """
        joints = model.config.joints
        joint = joints[0] if config.joint is None else config.joint
        offset = config.offset
        if offset is None:
            spread = spread_of(model, ACTION_KEY, torch.zeros(len(joints))).tolist()
            own = dict(zip(joints, spread, strict=True)).get(joint, 10.0)
            offset = 10.0 if own >= 10 else own / 2
        tolerance = abs(offset) / 10 if config.tolerance is None else config.tolerance
        Offset({joint: offset}).added_to(torch.zeros(1, len(joints)), joints)  # before all work
        return cls(joint, offset, tolerance)


def block_of(config: Config, model: HookedACT) -> str:
    """Whose MLP is edited."""
    block = config.block or f"decoder.{model.config.n_decoder_layers - 1}"
    return MLPSite.of(model, block).block


def address(text: str) -> tuple[int, int]:
    """Episode and frame.

    Raises:
        SceneError: if the text is not EPISODE:FRAME.
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise SceneError(f"A scene is EPISODE:FRAME, such as 3:0; got {quoted(text)}.")
    return int(parts[0]), int(parts[1])


@contextmanager
def progress(console: Console, what: str, total: int) -> Generator[Callable[[int], None]]:
    """A bar; gives the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)
