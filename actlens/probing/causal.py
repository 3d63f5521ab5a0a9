"""Whether what a probe reads is used: move it, and see whether the actions follow.

That a quantity can be read off a site is no evidence that the policy reads it there. So the action
vector is moved as it moves when the quantity grows, and the actions must move as they move then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.errors import SceneError
from actlens.interventions import Call, Intervention, run, run_scene
from actlens.metrics import project
from actlens.model.act import HookedACT
from actlens.probing.targets import Target
from actlens.scene import Scene, stack
from actlens.statistics import Interval, pooled_ratio

_BATCH = 8


@dataclass(frozen=True)
class Used:
    """What moving the action vector along one dimension of a target does to the actions."""

    target: str
    dim: int
    step: float
    """By how much the target is to grow: its spread over the fitted scenes."""
    share: Interval
    """Of the change of actions that goes with such a step in the fitted scenes, how much came
    about; over the scenes' episodes. 1: the actions follow, 0: they do not."""
    cosine: float
    """Of the change with that one."""
    random_share: float
    """Mean size of the same for moves as large in directions in which action vectors vary, too, but
    not with the target."""
    random_cosine: float
    p: float
    """Share of random directions that do as much."""


@torch.no_grad()
def follow_up(
    model: HookedACT,
    fitted: Sequence[Scene],
    target: Target,
    tried: Sequence[Scene],
    groups: Int[np.ndarray, " tried"],
    *,
    n_random: int = 20,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> tuple[Used, ...]:
    """Move the action vector, at every chunk position, along each dimension of a target.

    The direction is the pattern of the target (Haufe et al. 2014), how the action vector moves
    with it in the fitted scenes, not the weights of a probe, which also hold what is to be
    filtered out.

    Args:
        fitted: scenes that directions and expected changes come from, as `target.values`.
        tried: scenes of other episodes, in which the action vector is moved.
        groups: the episode of every tried scene.
        n_random: random directions for each scene.
        progress: told how many scenes were run.

    Raises:
        SceneError: if a tried scene's episode was fitted on.
    """
    known = {(scene.source, scene.episode) for scene in fitted}
    if any((scene.source, scene.episode) in known for scene in tried):
        raise SceneError("A scene to try is of an episode that was fitted on: keep them apart.")
    block = f"decoder.{model.config.n_decoder_layers - 1}"
    site = model.site(f"{block}.hook_normalized_resid_mid_cross")
    vectors, actions = _read(model, site.name, fitted, progress)
    values = torch.from_numpy(target.values)
    centred = values - values.mean(0)
    # Regression of everything on the target: how it moves when the target grows by one.
    inverse = torch.linalg.pinv(centred.T @ centred)
    patterns = torch.einsum("tu,su,skd->tkd", inverse, centred, vectors)
    expected = torch.einsum("tu,su,skj->tkj", inverse, centred, actions)
    steps = centred.std(0)
    generator = torch.Generator().manual_seed(seed)
    mixtures = torch.randn(n_random, len(fitted), generator=generator, dtype=torch.float64)
    # What is left of the variation when that with the target is taken out.
    left = vectors - vectors.mean(0) - torch.einsum("st,tkd->skd", centred, patterns)
    spread = torch.einsum("rs,skd->rkd", mixtures, left)
    found = [([], []) for _ in steps]
    for scene in tried:
        base = run_scene(model, scene)
        for dim, step in enumerate(steps):
            move = step * patterns[dim]
            size = move.norm(dim=(-2, -1))
            others = spread * (size / spread.norm(dim=(-2, -1), keepdim=True))
            edits = [
                Intervention.at(site, Call(lambda x, by=by: x + by.to(x))) for by in (move, *others)
            ]
            moved = run(model, base, edits).actions.double().cpu()
            start = base.actions.double().cpu()
            aim = (step * expected[dim]).expand_as(moved)
            one = project(moved, start.expand_as(moved), start + aim)
            found[dim][0].append(one.along.numpy())
            found[dim][1].append(np.stack([one.total.numpy(), one.moved.numpy()]))
        progress(1)
    return tuple(
        _used(target, dim, float(steps[dim]), np.stack(along, 1), np.stack(sizes, 2), groups, seed)
        for dim, (along, sizes) in enumerate(found)
    )


def _used(
    target: Target,
    dim: int,
    step: float,
    along: Float[np.ndarray, "direction scene"],
    sizes: Float[np.ndarray, "2 direction scene"],
    groups: Int[np.ndarray, " scene"],
    seed: int,
) -> Used:
    total, moved = sizes
    shares = along.sum(1) / total.sum(1)
    cosines = along.sum(1) / np.sqrt(total.sum(1) * moved.sum(1)).clip(1e-30)
    pooled = pooled_ratio(along[:1], total[:1], clusters=groups, seed=seed)
    interval = Interval(pooled.estimate[0], pooled.low[0], pooled.high[0])
    others = np.abs(shares[1:])
    return Used(
        target.name,
        dim,
        step,
        interval,
        float(cosines[0]),
        float(others.mean()),
        float(np.abs(cosines[1:]).mean()),
        float((1 + (others >= shares[0]).sum()) / (1 + len(others))),
    )


def _read(
    model: HookedACT, name: str, scenes: Sequence[Scene], progress: Callable[[int], None]
) -> tuple[Float[Tensor, "scene query d_model"], Float[Tensor, "scene chunk joint"]]:
    """The action vectors and the normalised actions, float64."""
    vectors, actions = [], []
    for start in range(0, len(scenes), _BATCH):
        batch = scenes[start : start + _BATCH]
        names = [name, "hook_actions_normalized"]
        _, cache = model.run_with_cache(stack(batch), names_filter=names)
        vectors.append(cache[name].double().cpu())
        actions.append(cache[names[1]].double().cpu())
        progress(len(batch))
    return torch.cat(vectors), torch.cat(actions)
