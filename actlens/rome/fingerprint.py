"""Hashes that tell which weights and which data numbers belong to.

Values are hashed as float32: a policy in float32 and the same policy in float64 are one policy.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import takewhile

import torch
from torch import Tensor

from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene

Digests = Mapping[str, str]
"""The SHA-256 of every tensor of a policy by name, in the order in which modules are defined."""


def tensor_sha256(value: Tensor) -> str:
    """The hash of a tensor's shape and values."""
    plain = value.detach().cpu().float().contiguous()
    digest = hashlib.sha256(f"{tuple(plain.shape)}\0".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digests_of(model: HookedACT) -> Digests:
    """The hash of every weight, and of the normalisation."""
    named = [(f"normalizer.{name}", value) for name, value in model.normalizer.named_buffers()]
    named += list(model.state_dict().items())
    return {name: tensor_sha256(value) for name, value in named}


def weights_sha256(digests: Digests) -> str:
    """The hash of all weights of a policy, and of its normalisation."""
    return _combined(digests, digests)


def upstream_sha256(digests: Digests, site: MLPSite) -> str:
    """The hash of the weights that an MLP's keys depend on.

    These are all that run before its output weights: the keys, and with them their statistics,
    survive edits at the MLP itself and behind it.
    """
    # Modules are defined in the order in which they run.
    before = takewhile(lambda name: name != site.matrix, digests)
    return _combined(digests, (name for name in before if not name.startswith("vae.")))


class DataHash:
    """The hash of scenes' observations, in order, as they stream by."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, scene: Scene) -> None:
        """Take one more scene in."""
        for key in sorted(scene.observation):
            value = scene.observation[key].cpu().contiguous()
            self._digest.update(f"{key} {value.dtype} {tuple(value.shape)}\0".encode())
            self._digest.update(value.reshape(-1).view(torch.uint8).numpy().data)

    def sha256(self) -> str:
        """Of all scenes so far."""
        return self._digest.hexdigest()


def scene_sha256(scene: Scene) -> str:
    """The hash of one scene's observation."""
    digest = DataHash()
    digest.add(scene)
    return digest.sha256()


def _combined(digests: Digests, names: Iterable[str]) -> str:
    text = "".join(f"{name} {digests[name]}\n" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()
