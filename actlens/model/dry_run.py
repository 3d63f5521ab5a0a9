"""The activations of a run without the run: shapes, dtypes and shared memory, and no numbers."""

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from actlens.config import ACTION_KEY, STATE_KEY
from actlens.errors import SceneError
from actlens.hooked_module import NamesFilter, copy_what_shares_memory
from actlens.model.embed import Inputs

if TYPE_CHECKING:
    from actlens.model.act import HookedACT


@torch.no_grad()
def dry_run(
    model: "HookedACT", names_filter: NamesFilter = None, *, rows: int = 1
) -> dict[str, Tensor]:
    """What `run_with_cache` would keep of a batch of `rows` observations, as tensors without data.

    The model's own code runs on torch's fake tensors, which compute shapes alone. Hooks that are
    attached to the model are left aside.

    Raises:
        HookNameError: if `names_filter` selects nothing.
        HookNeverFired: if a name that was asked for exactly is not reached at inference.
        SceneError: if `rows` is not positive.
    """
    if rows < 1:
        raise SceneError(f"A batch holds at least one observation, not {rows}.")
    before = model.is_caching, model.receipts, model.forward_count
    store, forward, _ = model.get_caching_hooks(names_filter)
    try:
        with _hooks_aside(model), FakeTensorMode(allow_non_fake_inputs=True), model.hooks(forward):
            actions = model.predict(_inputs(model, rows))
            actions = model.hook_actions(model.normalizer.unnormalize(ACTION_KEY, actions))
            copy_what_shares_memory(actions, store)
    finally:
        model.is_caching, model.receipts, model.forward_count = before
    return store


def _inputs(model: "HookedACT", rows: int) -> Inputs:
    """What `prepare` makes of observations, of its shapes."""
    config, like = model.config, model.action_head.weight

    def normalized(key: str, *shape: int) -> Tensor:
        entry = torch.empty(rows, *shape, dtype=like.dtype, device=like.device)
        return model.normalizer.normalize(key, entry)

    return Inputs(
        tuple(normalized(eye.key, 3, eye.height, eye.width) for eye in config.cameras),
        None if config.state_dim is None else normalized(STATE_KEY, config.state_dim),
        None
        if config.env_state_dim is None
        else normalized(config.env_state_key, config.env_state_dim),
        rows,
    )


@contextmanager
def _hooks_aside(model: "HookedACT") -> Generator[None]:
    """No forward hook but those attached inside of the block; afterwards the others are back."""
    aside = {point: point._forward_hooks for point in model.hook_points()}
    for point in aside:
        point._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for point, hooks in aside.items():
            point._forward_hooks = hooks
