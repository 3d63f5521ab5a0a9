"""What do stored activations cost, by site? Nothing is run.

    python -m actlens.store
    python -m actlens.store --policy outputs/act_so101/pretrained_model --sites encoder.hook_out

Without a policy the sizes are those of an ACT with two 480x640 cameras (602 tokens), d_model 512, 3
encoder layers, 3200 neurons and a chunk of 100. The documentation's table is this output.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro

from actlens.config import ACTConfig, Camera
from actlens.model.act import HookedACT
from actlens.store.sizes import scene_bytes

FRAMES = (1, 10_000, 1_000_000)
SITES = (
    "decoder.0.hook_action_vector[query=0]",
    "decoder.0.mlp.hook_post[query=0]",
    "decoder.0.hook_action_vector",
    "decoder.0.mlp.hook_post",
    "decoder.0.cross_attn.hook_pattern[query=0]",
    "decoder.0.cross_attn.hook_pattern",
    "encoder.*.hook_resid_pre[state]",
    "encoder.hook_out",
    "encoder.*.hook_resid_pre",
)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Config:
    """Of which policy, and which sites."""

    policy: str | None = None
    """A bundled name, a LeRobot folder, an original-ACT .ckpt, or a hub id."""
    sites: tuple[str, ...] = SITES
    """Hook points, parts of them, or globs."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what it is of, and the bytes of a scene."""

    what: str
    scene_bytes: int


def common_policy() -> HookedACT:
    """An ACT of the usual size, without weights."""
    cameras = tuple(Camera(f"observation.images.{name}", 480, 640) for name in ("top", "wrist"))
    config = ACTConfig(cameras, action_dim=6, state_dim=6, n_encoder_layers=3)
    with torch.device("meta"):
        return HookedACT(config).eval()


def rows(model: HookedACT, sites: Sequence[str]) -> list[Row]:
    """The sizes of sites in bfloat16, and of a cache of everything in the model's own dtype."""
    table = [Row(f"`{site}`", nbytes) for site, nbytes in scene_bytes(model, sites).items()]
    dtype = str(model.action_head.weight.dtype).removeprefix("torch.")
    return [*table, Row(f"everything, {dtype} (`cache_bytes()`)", model.cache_bytes())]


def markdown(table: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    heads = ["a scene", *(f"{n:,} frames" for n in FRAMES[1:])]
    lines = [f"| site | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in table:
        cells = " | ".join(_shown(row.scene_bytes * n) for n in FRAMES)
        lines.append(f"| {row.what} | {cells} |")
    return "\n".join(lines) + "\n"


def _shown(nbytes: float) -> str:
    """Three digits and a unit."""
    for unit in _UNITS[:-1]:
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} {_UNITS[-1]}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = tyro.cli(Config, prog="python -m actlens.store", description=__doc__, args=argv)
    model = HookedACT.from_pretrained(config.policy) if config.policy else common_policy()
    sys.stdout.write(markdown(rows(model, config.sites)))


if __name__ == "__main__":
    main()
