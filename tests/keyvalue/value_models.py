"""Small policies for the tests of values, and what plain hooks on them say."""

from contextlib import nullcontext

import torch

from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.mlp_site import MLPSite
from tests.interventions.conftest import CAMERAS, small_trunk
from tests.rome.conftest import scene

ARCHITECTURES = {
    "act": {},
    "pre_norm": {"pre_norm": True},
    "two_decoder_layers": {"n_decoder_layers": 2},
    "pre_norm_two_decoder_layers": {"pre_norm": True, "n_decoder_layers": 2},
    "gelu": {"activation": "gelu", "env_state_dim": 4},
}
BLOCKS = [
    ("act", "encoder.0"),
    ("act", "decoder.0"),
    ("pre_norm", "encoder.1"),
    ("gelu", "encoder.0"),
    ("two_decoder_layers", "decoder.0"),
    ("pre_norm_two_decoder_layers", "decoder.0"),
    ("pre_norm_two_decoder_layers", "encoder.0"),
]
EPISODES = (0, 0, 1, 1, 2, 2)
"""Of `some_scenes`."""


def small_policy(new_model, name="act", **changes):
    """An ACT on a cheap trunk, in float64, of which three of five positions are executed."""
    from actlens.config import Activation

    asked = ARCHITECTURES[name] | changes
    if "activation" in asked:
        asked = asked | {"activation": Activation(asked["activation"])}
    model = new_model(cameras=CAMERAS, n_action_steps=3, **asked)
    torch.manual_seed(5)
    model.embed.backbone = small_trunk()
    return model.double().requires_grad_(False)


def some_scenes(n=6, n_padded=0):
    return [scene(i, per_episode=2, n_padded=n_padded * (i == n - 1)) for i in range(n)]


def last_block(model):
    return f"decoder.{model.config.n_decoder_layers - 1}"


def runs_of(model, block, scenes):
    return MLPRuns.of(model, MLPSite.of(model, block), scenes)


def values_of(model, block):
    return MLPSite.of(model, block).layer(model).weight.detach().T


def chunk_with(model, one, hooks=()):
    """A whole forward under plain hooks: normalised actions."""
    with torch.no_grad(), model.hooks(list(hooks)) if hooks else nullcontext():
        return model.predict(model.prepare(one))[0]


def holding(block, neuron, value):
    """A hook after which a neuron holds a number everywhere."""

    def hold(coefficients, hook):
        coefficients[..., neuron] = value

    return [(f"{block}.mlp.hook_post", hold)]


def adding(block, vector, position=None):
    """A hook that adds a vector to what the MLP writes, at one position or at all."""

    def add(output, hook):
        output[:, slice(None) if position is None else position] += vector

    return [(f"{block}.hook_mlp_out", add)]
