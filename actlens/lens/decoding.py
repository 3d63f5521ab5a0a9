"""What lenses make of scenes: chunks of actions, at the price of one forward and many decoders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.errors import InterventionError
from actlens.hooks import HookFunction, HookPoint
from actlens.interventions import as_hooks
from actlens.interventions.intervention import Edit
from actlens.interventions.network import TOKEN_POS
from actlens.lens.lenses import Lens
from actlens.lens.places import MEMORY
from actlens.model.act import HookedACT
from actlens.scene import Scene, stack

BATCH = 8
"""Scenes that are run at once."""


@torch.no_grad()
def decoded(
    model: HookedACT,
    scenes: Sequence[Scene],
    lenses: Sequence[Lens],
    *,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Float[Tensor, "lens scene chunk joint"]:
    """The chunk that every lens decodes from every scene, in dataset units.

    Cameras and encoder run once for each scene, the decoder once for each lens. The same bits as a
    forward with `lens_hooks`; hooks that are attached to the model act in both.

    Raises:
        InterventionError: if a lens edits what lies before the encoder's output.
        SceneError: if there is no scene, or one does not fit the policy.
    """
    parts = []
    for start in range(0, max(1, len(scenes)), BATCH):
        some = scenes[start : start + BATCH]
        parts.append(decode(model, forward(model, some, lenses), lenses))
        progress(len(some))
    return torch.cat(parts, 1)


def forward(
    model: HookedACT, scenes: Sequence[Scene], lenses: Iterable[Lens], also: Iterable[str] = ()
) -> dict[str, Tensor]:
    """One forward of a batch of scenes, and what it holds where lenses look.

    Args:
        also: further hook points.
    """
    reads = [lens.moved.read for lens in lenses if lens.moved is not None]
    names = list(dict.fromkeys([*reads, *also, MEMORY, TOKEN_POS]))
    cache = model.run_with_cache(stack(scenes), names_filter=names)[1]
    return {name: cache[name] for name in names}


@torch.no_grad()
def decode(
    model: HookedACT, run: Mapping[str, Tensor], lenses: Sequence[Lens]
) -> Float[Tensor, "lens scene chunk joint"]:
    """What lenses make of a `forward`, in dataset units."""
    return torch.stack([_decode(model, run, lens) for lens in lenses])


def _decode(
    model: HookedACT, run: Mapping[str, Tensor], lens: Lens
) -> Float[Tensor, "scene chunk joint"]:
    intervention, donors = lens.intervention, lens.donors_of(run)
    memory, later = run[MEMORY], []
    for edit in intervention.edits:
        if edit.site.name == MEMORY:
            memory = edit.apply(memory, model.hook_point(MEMORY), donors)
        elif edit.site.name.startswith("decoder."):
            later.append(edit)
        else:
            raise InterventionError(
                f"{lens.name} edits {edit.site}: a lens edits {MEMORY} or what lies in the decoder."
            )
    hooks = as_hooks(model, type(intervention)(tuple(later)), donors) if later else []
    # Token-major memory, so that the decoder has the very bits of a whole forward.
    memory = memory.transpose(0, 1).contiguous().transpose(0, 1)
    with model.hooks(fwd_hooks=hooks):
        normalized = model.decode(memory, run[TOKEN_POS])
        return model.hook_actions(model.normalizer.unnormalize(ACTION_KEY, normalized))


def lens_hooks(model: HookedACT, lens: Lens) -> list[tuple[str, HookFunction]]:
    """The lens as hooks of a whole forward, in which it reads what it puts elsewhere.

        model.run_with_hooks(scene, fwd_hooks=lens_hooks(model, lens))

    In `model.hooks(…)` a rollout acts on what the lens shows, at every inference.

    Raises:
        HookNameError: if the policy lacks a hook point of the lens.
    """
    held: dict[str, Tensor] = {}
    hooks: list[tuple[str, HookFunction]] = []
    if lens.moved is not None:
        hooks.append((lens.moved.read, partial(_kept, into=held)))
    for edit in lens.intervention.edits:
        hooks.append((edit.site.name, partial(_edited, edit=edit, lens=lens, held=held)))
    return hooks


def _kept(activation: Tensor, hook: HookPoint, *, into: dict[str, Tensor]) -> None:
    into[hook.name or ""] = activation


def _edited(
    activation: Tensor, hook: HookPoint, *, edit: Edit, lens: Lens, held: dict[str, Tensor]
) -> Tensor:
    return edit.apply(activation, hook, lens.donors_of(held))
