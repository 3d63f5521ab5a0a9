"""Demonstrations from a store of activations: no forward is run again."""

from collections.abc import Mapping

import numpy as np

from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.keys import RetrievalError
from actlens.store import ActivationStore

_ACTIONS = "hook_actions"
_KNOWN = ("source", "episode", "frame")


def stored_demonstrations(store: ActivationStore, sites: Mapping[str, str]) -> Demonstrations:
    """Stored scenes as a table; whole sites come into memory.

    Sites that are too large for that are searched where they lie, by
    `NearestNeighbours.of(store[address], episodes=store.groups)`.

    Args:
        sites: name in tables -> stored address. Those with a `query` axis give a key for every
            position of the chunk.

    Raises:
        RetrievalError: if the policy's actions (`hook_actions`) were not stored.
        HookNameError: if a site was not.
        StoreError: if the scenes had no demonstrated actions, or a shard is damaged.
    """
    if not any(address.partition("[")[0] == _ACTIONS for address in store.sites):
        raise RetrievalError(
            f"{store.folder} does not hold what the policy did: store {_ACTIONS!r} as well."
        )
    keys = {}
    for name, address in sites.items():
        values = store[address]
        by_position = values.axes[1:2] == ("query",)
        shape = (len(values), values.shape[1], -1) if by_position else (len(values), -1)
        keys[name] = values[:].reshape(shape).numpy()
    predicted = store[_ACTIONS][:].numpy()
    chunk, labels = predicted.shape[1], store.labels
    column = lambda name: np.asarray(labels[name], dtype=np.float64)
    known = [str(name) for name in labels.columns if name not in _KNOWN]
    return Demonstrations(
        keys,
        store.actions[:].numpy()[:, :chunk],
        predicted,
        ~store.action_is_pad[:].numpy().astype(bool)[:, :chunk],
        store.groups,
        np.asarray(labels["frame"], dtype=np.int64),
        {name: column(name) for name in known if np.isfinite(column(name)).all()},
    )
