"""Demonstrations that a policy made itself: every scene is one that its rollouts pass again."""

import numpy as np
import torch

from actlens.retrieval import run_demonstrations
from actlens.scene import Scene
from actlens.sim.rollout import as_observation
from actlens.sim.watching import watched_sites

LABELS = ("cube_x", "cube_y", "cube_z", "cube_yaw")


def passed_scenes(model, env, starts, steps):
    """The scenes of every inference of plain rollouts, with the policy's own chunk and a twist."""
    scenes = []
    for episode, start in enumerate(starts):
        seen, facts = env.reset(seed=start.seed, options={"cube_xy": np.asarray(start.cube_xy)})
        model.reset()
        for t in range(steps):
            if t % model.config.n_action_steps == 0:
                observation = as_observation(seen)
                twist = 0.01 * torch.randn(6, generator=torch.Generator().manual_seed(episode))
                with torch.no_grad():
                    action = model(observation)[0] + twist
                labels = dict(zip(LABELS, map(float, facts["cube"]), strict=True))
                scenes.append(Scene(observation, action, None, episode, t, labels, "own"))
            seen, *_, facts = env.step(model.select_action(as_observation(seen))[0].numpy())
    model.reset()
    return scenes


def demonstrations_of(model, scenes):
    return run_demonstrations(model, scenes, watched_sites(model))
