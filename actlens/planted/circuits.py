"""Small circuits whose parts are known: a copy head, additive joints, phases, a switch, nothing.

Each is a policy of float64 that saves and loads, with what is true of it beside.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ENV_STATE_KEY, STATE_KEY
from actlens.model.act import HookedACT
from actlens.planted.blank import blank_policy, finished
from actlens.planted.encoder_weights import random_encoder
from actlens.planted.neurons import Neurons, Role, make_neurons, together
from actlens.planted.readout import Readout
from actlens.planted.transparent import (
    CONFIG,
    ENV,
    ENV_HEAD,
    LATENT,
    N_INPUTS,
    STATE,
    transparent_policy,
)
from actlens.scene import Scene


def scene_of(
    state: Float[Tensor, " joint"],
    env: Float[Tensor, " env"] | None = None,
    *,
    episode: int = 0,
    frame: int = 0,
) -> Scene:
    """A scene of these circuits; the environment state is zero if not given."""
    env = torch.zeros(6, dtype=torch.float64) if env is None else env
    return Scene({STATE_KEY: state, ENV_STATE_KEY: env}, episode=episode, frame=frame)


def _linear(part: slice, matrix: Float[Tensor, "joint input"]) -> Neurons:
    """Pairs of opposite neurons: `matrix` times a part of the inputs."""
    weight = torch.zeros(len(matrix), N_INPUTS, dtype=torch.float64)
    weight[:, part] = matrix
    eye = torch.eye(len(matrix), dtype=torch.float64)
    zeros = torch.zeros(2 * len(matrix), dtype=torch.float64)
    both = lambda x: torch.cat([x, -x])
    return make_neurons(both(weight), zeros, both(eye), Role.RULE)


@dataclass(frozen=True)
class CopyHead:
    """A policy whose action is the environment state, carried by one decoder head."""

    model: HookedACT
    head: int = ENV_HEAD
    token: str = "env_state"


def copy_head(seed: int = 0) -> CopyHead:
    """All other heads look at other tokens, and what they bring is not read."""
    return CopyHead(transparent_policy(_linear(ENV, torch.eye(6).double()), seed=seed))


@dataclass(frozen=True)
class Additive:
    """Every action is a sum of one function for each joint of the state: no joint interacts.

    Joint i adds `slope[:, i] * q + bend[:, i] * max(q - knot[i], 0)`.
    """

    model: HookedACT
    slope: Float[Tensor, "joint state"]
    bend: Float[Tensor, "joint state"]
    knot: Float[Tensor, " state"]

    def parts(self, state: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch joint state"]:
        """What each joint of the state adds to each action."""
        q = state.double()[..., None, :]
        return self.slope * q + self.bend * (q - self.knot).clamp(min=0)

    def shapley(
        self, state: Float[Tensor, " state"], base: Float[Tensor, " state"]
    ) -> Float[Tensor, "joint state"]:
        """Shapley values of the joints of the state against a base state: exact."""
        return self.parts(state) - self.parts(base)


def additive_policy(seed: int = 0) -> Additive:
    """Random functions of each joint."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    slope, bend, knot = draw(6, 6), draw(6, 6), 0.5 * draw(6)
    weight = torch.zeros(6, N_INPUTS, dtype=torch.float64)
    weight[:, STATE] = torch.eye(6)
    bent = make_neurons(weight, -knot, bend.T, Role.RULE)
    function = together([_linear(STATE, slope), bent])
    return Additive(transparent_policy(function, seed=seed), slope, bend, knot)


@dataclass(frozen=True)
class Phases:
    """A policy with neurons that are on in one phase of every episode, whatever else is there.

    The first two numbers of the state are the hand of a clock, `length` frames a turn; the others
    are the episode's own, and tremble.
    """

    model: HookedACT
    neurons: tuple[int, ...]
    """Of the last decoder MLP."""
    on: tuple[tuple[int, ...], ...]
    """By neuron, the frames in which it is on."""
    length: int

    def scene(self, episode: int, frame: int) -> Scene:
        """A moment of an episode."""
        rng = np.random.default_rng([7, episode])
        state, env = torch.from_numpy(rng.normal(size=6)), torch.from_numpy(rng.normal(size=6))
        state += 0.3 * torch.from_numpy(np.random.default_rng([8, episode, frame]).normal(size=6))
        state[:2] = torch.from_numpy(_hand(frame / self.length))
        return scene_of(state, env, episode=episode, frame=frame)


def phase_policy(n_neurons: int = 3, length: int = 20, width: float = 0.15) -> Phases:
    """Phase neurons evenly over the episode, beside a linear rule of everything else.

    Args:
        width: of a phase, as a share of the episode.
    """
    # The rule must not be a clock of its own.
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix[:, :2] = 0
    centres = (np.arange(n_neurons) + 0.5) / n_neurons
    weight = torch.zeros(n_neurons, N_INPUTS, dtype=torch.float64)
    weight[:, STATE.start : STATE.start + 2] = torch.from_numpy(_hand(centres).T)
    edge = float(np.cos(np.pi * width))
    value = torch.eye(n_neurons, 6, dtype=torch.float64)
    bias = torch.full((n_neurons,), -edge, dtype=torch.float64)
    phases = make_neurons(weight, bias, value, Role.RULE)
    model = transparent_policy(together([phases, _linear(STATE, matrix)]))
    frames = np.arange(length)
    near = np.cos(2 * np.pi * (frames / length - centres[:, None])) > edge + 1e-9
    on = tuple(tuple(int(t) for t in frames[row]) for row in near)
    return Phases(model, tuple(range(n_neurons)), on, length)


def _hand(turn: float | np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * np.asarray(turn)
    return np.stack([np.cos(angle), np.sin(angle)])


@dataclass(frozen=True)
class LatentSwitch:
    """A policy whose behaviour the latent chooses: one joint goes up or down, by its sign.

    At inference the latent is zero, and the joint stays between; the other joints copy the state.
    """

    model: HookedACT
    joint: int
    dimension: int
    """Of the latent."""
    amount: float
    """The joint's action is this times the latent's sign, beyond `sharpness` of zero."""
    sharpness: float

    def answer(self, state: Float[Tensor, " joint"], latent: float = 0.0) -> Tensor:
        """The action at every chunk position."""
        action = state.double().clone()
        action[self.joint] = self.amount * max(-1.0, min(1.0, latent / self.sharpness))
        return action


def latent_switch(amount: float = 2.0, sharpness: float = 0.1) -> LatentSwitch:
    """With a CVAE encoder whose posterior reads the choice off a demonstrated chunk.

    The posterior's mean is the mean over the chunk of that joint's action, its variance 1e-4.
    """
    joint, dimension = 5, 0
    config = replace(CONFIG, use_vae=True)
    copied = torch.eye(6, dtype=torch.float64)
    copied[joint] = 0
    weight = torch.zeros(2, N_INPUTS, dtype=torch.float64)
    weight[:, LATENT.start + dimension] = 1 / sharpness
    value = torch.zeros(2, 6, dtype=torch.float64)
    value[:, joint] = torch.tensor([amount, -amount])
    constant = -value[0]
    ramp = make_neurons(weight, torch.tensor([1.0, -1.0]).double(), value, Role.RULE,
                        constant=constant)  # fmt: skip
    model = transparent_policy(together([ramp, _linear(STATE, copied)]), config=config)
    _posterior(model, joint, dimension)
    return LatentSwitch(finished(model), joint, dimension, amount, sharpness)


@torch.no_grad()
def _posterior(model: HookedACT, joint: int, dimension: int) -> None:
    """The CLS token averages over all tokens what the joint's action writes, and reports it."""
    config, vae = model.config, model.vae
    way = Readout.make(config.d_model, 2, seed=5)
    seen, told = way.basis.T
    for token in (vae.cls.weight[0], vae.state_proj.bias, vae.action_proj.bias):
        token.copy_(way.length * way.anchor)
    vae.action_proj.weight[:, joint] = seen
    attn = vae[0].attn
    attn.in_proj_weight[2 * config.d_model] = seen
    attn.out_proj.weight[:, 0] = told
    n_tokens = config.chunk + 2
    scale = way.length / config.d_model**0.5
    vae.latent_out_proj.weight[dimension] = told * scale * n_tokens / config.chunk
    vae.latent_out_proj.bias[config.latent_dim :] = -9.21  # log of the variance


def dead_policy(seed: int = 0) -> HookedACT:
    """Random weights and one constant chunk for every scene: every ratio of effects is undefined.

    Activations vary as in any policy; the action head reads none of them.
    """
    model = blank_policy(CONFIG)
    random_encoder(model, Readout.make(CONFIG.d_model, 6, seed), seed)
    with torch.no_grad():
        model.action_head.bias.copy_(torch.linspace(-1, 1, 6))
    return finished(model)
