"""What stored activations cost, before anything is run."""

import math
from collections.abc import Sequence
from itertools import islice

import torch

from actlens.model.act import HookedACT
from actlens.store.sites import named_sites, stored_sites, with_sizes


def scene_bytes(
    model: HookedACT, sites: str | Sequence[str], dtype: torch.dtype = torch.bfloat16
) -> dict[str, int]:
    """Address -> the bytes of one scene's value, exactly; those of all its sites for a glob.

    The model is not run and may have no weights (meta device).

    Raises:
        HookNameError: if a site does not exist.
        HookNeverFired: if inference does not pass a site.
        StoreError: if a site is the same for all scenes.
    """
    given = (sites,) if isinstance(sites, str) else sites
    named = {address: named_sites(model, address) for address in given}
    shapes = [s.shape for s in with_sizes(model, [s for some in named.values() for s in some])]
    sizes = iter(math.prod(shape) * dtype.itemsize for shape in shapes)
    return {address: sum(islice(sizes, len(some))) for address, some in named.items()}


def store_bytes(
    model: HookedACT,
    sites: str | Sequence[str],
    n_scenes: int,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """The bytes of all activations of a store, exactly; labels and actions come on top.

    These are, for every scene, 24 bytes, 8 for each label, and 4 (joints) + 1 for each action of
    the chunk.

    Raises:
        HookNameError: if a site does not exist.
        HookNeverFired: if inference does not pass a site.
        StoreError: if a site is the same for all scenes or named twice.
    """
    shapes = [site.shape for site in stored_sites(model, sites)]
    return n_scenes * dtype.itemsize * sum(map(math.prod, shapes))
