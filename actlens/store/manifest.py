"""What a store says of itself: the manifest, written once, before any shard."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from actlens.checkpoints.files import read_json
from actlens.config import ACTConfig, Activation, Backbone, Camera
from actlens.errors import ActlensError, CheckpointError
from actlens.hooks import HookPoint
from actlens.sites import parse_where, split_address
from actlens.store.errors import StoreError
from actlens.store.files import write_whole
from actlens.store.json_values import count, sha256, text
from actlens.store.scene_tensors import ActionShape, scene_entries
from actlens.store.shard_file import DTYPES, Entry
from actlens.store.sites import StoredSite
from actlens.text import clean_text, quoted
from actlens.tokens import TokenMap

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "actlens.store", 1
_LONGEST = 2**20
"""More entries than any axis has: a hostile manifest must not fill the memory."""
FLOATS = {code: dtype for dtype, code in DTYPES.items() if dtype.is_floating_point}
"""What activations can be stored in, by safetensors' names."""


@dataclass(frozen=True)
class Manifest:
    """All that the shards of a store have in common."""

    config: ACTConfig
    weights_sha256: str
    """Of the weights and statistics in the model when it was run, edits included."""
    checkpoint_sha256: str
    """Of the weights file that the model was loaded from; empty for a model made in memory."""
    policy: str
    """Where the model was loaded from."""
    sites: tuple[StoredSite, ...]
    aliases: Mapping[str, str]
    """Other names of the sites' hook points -> the names."""
    dtype: torch.dtype
    action_shape: ActionShape
    """Of each scene's demonstrated chunk."""
    scenes_per_shard: int
    scenes_per_forward: int
    """The batch size; with another, values may differ by float rounding."""
    actlens: str
    environment: Mapping[str, str]
    """Of the run that began the store: versions, device, threads."""

    def entries(self, n_scenes: int) -> list[Entry]:
        """What every shard holds; labels come on top."""
        sites = [Entry(s.address, self.dtype, (n_scenes, *s.shape)) for s in self.sites]
        return sites + scene_entries(n_scenes, self.action_shape)

    def require_same(self, other: "Manifest", folder: Path) -> None:
        """Refuse to go on with a store that was begun with something else.

        Raises:
            StoreError: naming what differs and both values.
        """
        was, now = self._kept(), other._kept()
        for what in was:
            if was[what] != now[what]:
                raise StoreError(
                    f"{folder}: was begun with another {what} ({quoted(was[what])}) than is given "
                    f"({quoted(now[what])}). A store keeps to one; write to another folder."
                )

    def _kept(self) -> dict[str, object]:
        """What all shards must share, in words."""
        network = asdict(self.config)
        for queue_or_training in ("n_action_steps", "temporal_ensemble_coeff", "dropout"):
            del network[queue_or_training]
        return network | {
            "hash of weights": self.weights_sha256,
            "choice of sites": ", ".join(site.address for site in self.sites),
            "dtype": self.dtype,
            "shape of action chunks": self.action_shape,
            "scenes_per_shard": self.scenes_per_shard,
        }


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "actlens": manifest.actlens,
        "policy": manifest.policy,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "weights_sha256": manifest.weights_sha256,
        "dtype": DTYPES[manifest.dtype],
        "sites": [
            {"address": s.address, "axes": s.axes, "sizes": s.sizes, "stored_shape": s.shape}
            for s in manifest.sites
        ],
        "aliases": dict(manifest.aliases),
        "action_shape": manifest.action_shape,
        "scenes_per_shard": manifest.scenes_per_shard,
        "scenes_per_forward": manifest.scenes_per_forward,
        "environment": dict(manifest.environment),
        "config": asdict(manifest.config),
    }
    write_whole(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        StoreError: if there is none, or it is damaged, foreign, or of a later version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(f"{folder}: is no activation store: it has no {MANIFEST}.")
    try:
        content = read_json(path)
        if content.get("format") != _FORMAT or content.get("version") != _VERSION:
            raise StoreError(
                f"{path}: is format {quoted(content.get('format'))} version "
                f"{quoted(content.get('version'))}; this actlens reads {_FORMAT} {_VERSION}."
            )
        return _manifest(content)
    except (CheckpointError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ActlensError) and not isinstance(error, CheckpointError):
            raise StoreError(f"{path}: {clean_text(error)}") from error
        raise StoreError(f"{path}: is damaged or foreign ({quoted(error)}).") from error


def _manifest(content: Mapping[str, Any]) -> Manifest:
    config = _config(content["config"])
    tokens = TokenMap(config)
    actions = content["action_shape"]
    return Manifest(
        config=config,
        weights_sha256=sha256(content["weights_sha256"]),
        checkpoint_sha256=text(content["checkpoint_sha256"]),
        policy=text(content["policy"]),
        sites=tuple(_site(site, tokens) for site in content["sites"]),
        aliases={text(k): text(v) for k, v in content["aliases"].items()},
        dtype=FLOATS[content["dtype"]],
        action_shape=None if actions is None else (count(actions[0]), count(actions[1])),
        scenes_per_shard=count(content["scenes_per_shard"]),
        scenes_per_forward=count(content["scenes_per_forward"]),
        actlens=text(content["actlens"]),
        environment={text(k): text(v) for k, v in content["environment"].items()},
    )


def _config(content: Mapping[str, Any]) -> ACTConfig:
    cameras = tuple(
        Camera(text(c["key"]), count(c["height"]), count(c["width"])) for c in content["cameras"]
    )
    fields: dict[str, Any] = {
        **content,
        "cameras": cameras,
        "backbone": Backbone(content["backbone"]),
        "activation": Activation(content["activation"]),
        "joints": tuple(text(joint) for joint in content["joints"]),
        "env_state_key": text(content["env_state_key"]),
    }
    return ACTConfig(**fields)


def _site(content: Mapping[str, Any], tokens: TokenMap) -> StoredSite:
    name, selectors = split_address(text(content["address"]))
    point = HookPoint(" ".join(text(axis) for axis in content["axes"]))
    point.name = name
    sizes = tuple(count(size) for size in content["sizes"])
    if point.axes[:1] != ("batch",) or len(point.axes) != 1 + len(sizes) or max(sizes) > _LONGEST:
        raise ValueError(f"{name} has axes {point.axes} of sizes {sizes}")
    site = StoredSite(name, point.axes, sizes, parse_where(selectors, point, tokens))
    site.index(1)
    if list(site.shape) != content["stored_shape"] or "batch" in site.where:
        raise ValueError(f"{site.address} is not of shape {content['stored_shape']}")
    return site
