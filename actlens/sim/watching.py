"""Rollouts of an undisturbed policy, with a key of every inference at some sites."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.hooks import HookPoint, Reader
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.retrieval.sites import Activation, Observation, Pixels, Site
from actlens.sim.conditions import Start
from actlens.sim.environment import PickCube
from actlens.sim.rollout import RolloutResult, as_observation, rollout
from actlens.sim.substitution import vector_site


def watched_sites(model: HookedACT) -> tuple[Site, ...]:
    """Where a monitor may look: what is seen, what is felt, and two places in the network."""
    seen: list[Site] = [Pixels()] if model.config.cameras else []
    if model.config.state_dim is not None:
        seen.append(Observation())
    if model.config.env_state_dim is not None:
        seen.append(Observation("environment", model.config.env_state_key))
    return (
        *seen,
        Activation("encoder output, mean", ("encoder.hook_out",), mean_over=(1,)),
        vector_site(model),
    )


def watched_rollout(
    model: HookedACT,
    env: PickCube,
    start: Start,
    sites: Sequence[Site],
    *,
    steps: int = 90,
) -> tuple[RolloutResult, dict[str, Float[np.ndarray, "inference d"]]]:
    """A plain rollout, and the sites' keys at its inferences; nothing is changed.

    Of a site with a key for every chunk position, those that are carried out are one key.
    """
    positions = list(executed_positions(model.config))
    hooks = list(dict.fromkeys(hook for site in sites for hook in site.hooks))
    found: dict[str, list[np.ndarray]] = {site.name: [] for site in sites}

    def select_action(seen: dict[str, np.ndarray]) -> np.ndarray:
        observation = as_observation(seen)
        before = model.clock.inference_step
        cache: dict[str, Tensor] = {}

        def read(activation: Tensor, hook: HookPoint) -> None:
            cache[hook.name or ""] = activation.detach().clone()

        with model.hooks(fwd_hooks=[(hook, Reader(read)) for hook in hooks]):
            action = model.select_action(observation)
        if model.clock.inference_step > before:
            observed = {key: value[None] for key, value in observation.items()}
            for site in sites:
                key = site.keys(cache, observed)
                key = key[:, positions].flatten(1) if key.ndim == 3 else key
                found[site.name].append(key[0].float().cpu().numpy())
        return action[0].float().numpy(force=True)

    try:
        with torch.no_grad():
            result = rollout(
                env, select_action, model.reset, cube_xy=start.cube_xy, seed=start.seed, steps=steps
            )
    finally:
        model.reset()
    return result, {name: np.stack(keys) for name, keys in found.items()}
