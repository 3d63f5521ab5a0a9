"""Patching one pair as a unit of work, in this process or in another."""

import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Event, Lock
from typing import Any, Self

import torch

from actlens.allocator import keep_freed_memory
from actlens.matmul import calibrate
from actlens.model.act import HookedACT
from actlens.patching.identity import code_version, model_hash
from actlens.patching.pair_sources import PairSource
from actlens.patching.pairs import patch_pair
from actlens.patching.parts import Part, parts_of
from actlens.patching.patched_pair import PatchedPair
from actlens.patching.sweep import SweepOptions
from actlens.shards import Progress, RunError, Unit, encode, from_tree
from actlens.shards.keys import differences


@dataclass(frozen=True)
class PolicyFiles:
    """A policy that every worker loads for itself."""

    path: str
    """A bundled name, a path that all workers know, or a hub id."""
    revision: str | None = None
    device: str = "cpu"
    cameras: tuple[str, ...] = ()
    """With `image_size` and `n_heads`, what an original ACT's files do not say."""
    image_size: tuple[int, int] | None = None
    n_heads: int | None = None

    def load(self) -> HookedACT:
        """The policy, in eval mode."""
        return HookedACT.from_pretrained(
            self.path,
            revision=self.revision,
            device=self.device,
            cameras=self.cameras or None,
            image_size=self.image_size,
            n_heads=self.n_heads,
        )


@dataclass(frozen=True)
class Setting:
    """How every pair is patched."""

    options: SweepOptions
    seed: int
    with_null: bool
    tolerance: float
    matmul: str

    @classmethod
    def of(cls, asked: Mapping[str, Any], settled: Mapping[str, Any]) -> Self:
        """What a plan asks and its run has settled."""
        options = from_tree(SweepOptions, asked["options"])
        return cls(options, asked["seed"], asked["with_null"], **settled)


@dataclass(frozen=True)
class Bench:
    """A policy in memory, and all that is needed to patch pairs with it."""

    model: HookedACT
    source: PairSource
    setting: Setting
    parts: tuple[Part, ...]
    in_use: Lock = field(default_factory=Lock)
    """Held by the thread that reads a pair or runs the model with hooks."""

    def patched(self, unit: Unit, advance: Callable[[int], None] = lambda n: None) -> bytes:
        """One unit's result, encoded."""
        with self.in_use:
            pair = self.source.read(unit.what)
        setting = self.setting
        patches = patch_pair(
            self.model, pair, parts=self.parts, options=setting.options,
            with_null=setting.with_null, tolerance=setting.tolerance, seed=setting.seed,
            advance=advance, hooks_in_use=self.in_use,
        )  # fmt: skip
        return encode(PatchedPair.of(pair, patches), key=unit.key)


@dataclass(frozen=True)
class PatchWork:
    """The work of other processes: a few words, from which each opens policy and pairs once."""

    policy: PolicyFiles
    source: PairSource
    asked: str
    """Canonical JSON of the plan's."""
    settled: str
    """Canonical JSON of the run's."""

    def __call__(self, unit: Unit) -> bytes:
        """One unit's result, encoded.

        Raises:
            RunError: if this process has another policy, other data or other code than the run.
        """
        with _opening:
            bench = _opened(self)
        return bench.patched(unit)


_opening = Lock()


@lru_cache(maxsize=1)
def _opened(work: PatchWork) -> Bench:
    # oneDNN keeps what it made for 1,024 shapes of products; a sweep meets ever new ones, and none
    # of them often: 2 GB a worker for nothing.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    keep_freed_memory()
    torch.set_num_threads(1)
    asked, settled = json.loads(work.asked), json.loads(work.settled)
    model = work.policy.load()
    ours = {
        "policy": model_hash(model),
        "scenes": work.source.sha256(),
        "code": code_version(),
    }
    for what, here, there in differences(ours, {name: asked[name] for name in ours}):
        raise RunError(
            f"A worker has another {what.replace('.', ': ')} than the run ({here!r}, not "
            f"{there!r}): all machines need the same files at the same paths, and the same actlens."
        )
    setting = Setting.of(asked, settled)
    torch.set_float32_matmul_precision(_usable(setting.matmul))
    return Bench(model, work.source, setting, parts_of(model))


def _usable(precision: str) -> str:
    """The setting, if it is still float32 on this machine; elsewhere it can mean bfloat16."""
    if precision == "highest":
        return precision
    found = calibrate()
    return precision if found.error_medium <= 3 * found.error_default else "highest"


@contextmanager
def matmul_as(precision: str) -> Generator[None]:
    """Torch's setting of float32 products for the length of a `with` block."""
    before = torch.get_float32_matmul_precision()
    if before != precision:
        torch.set_float32_matmul_precision(_usable(precision))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Stopped(Exception):
    """The run ends early."""


@dataclass
class Meter:
    """Progress in patches, for threads that can tell."""

    per_unit: int
    tell: Callable[[Progress], None]
    stopped: Event = field(default_factory=Event)
    patches: int = 0
    last: Progress | None = None
    began: float = field(default_factory=time.monotonic)
    lock: Lock = field(default_factory=Lock)

    def report(self, progress: Progress) -> None:
        """Told when a unit is done."""
        with self.lock:
            self.last = progress
            self._tell()

    def advance(self, n: int) -> None:
        """Told by a thread that has made patches."""
        if self.stopped.is_set():
            raise _Stopped
        with self.lock:
            self.patches += n
            self._tell()

    def _tell(self) -> None:
        if self.last is not None:
            done = min(self.last.total, self.last.found + self.patches / self.per_unit)
            seconds = time.monotonic() - self.began
            self.tell(replace(self.last, done=done, seconds=seconds))
