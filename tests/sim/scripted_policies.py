"""Policies whose closed-loop behaviour is known: a real ACT whose chunk a short script writes."""

import numpy as np
import torch

from actlens.config import ENV_STATE_KEY, ACTConfig
from actlens.model.act import HookedACT
from actlens.sim.environment import HOME, PickCube
from actlens.sim.expert import HOVER_HEIGHT, expert_chunk
from actlens.sim.kinematics import joints_for_tip

CHUNK, N_ACTION_STEPS = 18, 6
CUBE_TOKEN = 2  # after the latent and the state


class SeenCube(PickCube):
    """The simulator without pictures that says where the cube is: x, y, z, yaw."""

    def __init__(self):
        super().__init__(render=False)

    def _observation(self):
        cube = self._facts()["cube"].astype(np.float32)
        return super()._observation() | {ENV_STATE_KEY: cube}


def tiny_config(**changes):
    fields = {
        "cameras": (), "action_dim": 6, "state_dim": 6, "env_state_dim": 4, "chunk": CHUNK,
        "n_action_steps": N_ACTION_STEPS, "d_model": 16, "n_heads": 2, "d_mlp": 16,
        "n_encoder_layers": 1, "use_vae": False,
    }  # fmt: skip
    return ACTConfig(**(fields | changes))


def random_policy(**changes):
    """ACT with random weights, its chunks spread over tens of degrees; nothing scripted."""
    torch.manual_seed(0)
    model = HookedACT(tiny_config(**changes)).eval()
    with torch.no_grad():
        model.action_head.weight.mul_(10)
        model.action_head.bias.copy_(torch.tensor(HOME))
    return model


class Scripted(HookedACT):
    """An ACT that runs as ever, and then answers `script(state, cube, control_step)`.

    The cube is read from its token, so that patching that token is patching what the script knows.
    """

    def __init__(self, script, **changes):
        super().__init__(tiny_config(**changes))
        self.script = script
        with torch.no_grad():
            self.embed.env_proj.weight.copy_(torch.eye(16, 4))
            self.embed.env_proj.bias.zero_()
        self.eval()

    def predict(self, inputs, latent=None):
        tokens, pos = self.embed(inputs, self.action_head.weight.new_zeros(1, 32))
        self.ln_final(self.decoder(self.encoder(tokens, pos), pos))
        cube = tokens[0, CUBE_TOKEN, :4].numpy().astype(np.float64)
        state = inputs.state[0].numpy().astype(np.float64)
        chunk = self.script(state, cube, self.clock.control_step)
        self.forward_count += 1
        return self.hook_actions_normalized(torch.tensor(chunk, dtype=torch.float32)[None])


def expert(state, cube, step):
    """The whole demonstration, planned once: for policies that never look again."""
    return expert_chunk(state, cube[:2], cube[3], size=90)


def by_the_clock(state, cube, step):
    """A fixed plan in time; what is seen does not matter."""
    swing = 20 * np.sin(np.arange(step, step + CHUNK) / 8)
    return HOME + swing[:, None] * np.array([1, 0.3, 0.3, 0, 0, 0])


def hover(state, cube, step):
    """From wherever the arm is to above the cube within five steps."""
    goal = joints_for_tip(*cube[:2], HOVER_HEIGHT, yaw=cube[3], gripper=70.0)
    share = np.minimum(np.arange(1, CHUNK + 1) / 5, 1)
    return state + share[:, None] * (goal - state)


def drift(state, cube, step):
    """From wherever the arm is half a degree a step to the side: displaced, it stays displaced."""
    return state + np.arange(1, CHUNK + 1)[:, None] * np.array([0.5, 0, 0, 0, 0, 0])
