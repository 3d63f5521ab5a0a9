"""A policy that carries its observation to the last MLP unchanged, which computes any function.

One decoder head copies the latent token, one the state, one the environment state, side by side;
encoder blocks do nothing. The MLP's neurons then compute the action of what the policy was given,
the same at every chunk position: a referee for whatever asks which input does what.
"""

import math
from dataclasses import dataclass, replace

import torch

from actlens.config import ACTConfig
from actlens.model.act import HookedACT
from actlens.planted.blank import SHARP, blank_policy, finished, write_head
from actlens.planted.neurons import Neurons
from actlens.planted.readout import Readout
from actlens.planted.twins import (
    filled,
    mlp_weights,
    norm_scale,
    norm_scale_of_unit,
    tail_weights,
)

LATENT_HEAD, STATE_HEAD, ENV_HEAD = 0, 1, 2
"""Which decoder head copies which token; a fourth has nothing to do."""

CONFIG = ACTConfig(
    cameras=(), action_dim=6, state_dim=6, env_state_dim=6, chunk=5, n_action_steps=5,
    d_model=64, n_heads=4, d_mlp=48, n_encoder_layers=2, latent_dim=4, use_vae=False, dropout=0.0,
    n_vae_encoder_layers=1,
)  # fmt: skip
N_INPUTS = 4 + 6 + 6
"""Of the function: latent, state, environment state, in this order."""
LATENT, STATE, ENV = slice(0, 4), slice(4, 10), slice(10, 16)


@dataclass(frozen=True)
class Wires:
    """The directions of the stream that a transparent policy uses."""

    content: Readout
    """In tokens and action vectors: the inputs."""
    codes: torch.Tensor
    """Of the three tokens' positions and of the query."""
    answer: Readout
    """Where the MLP writes the action."""

    @classmethod
    def make(cls, config: ACTConfig, seed: int) -> "Wires":
        """Random directions."""
        n = config.action_dim
        whole = Readout.make(config.d_model, N_INPUTS + 4 + n, seed)
        content, codes, answer = whole.basis.split([N_INPUTS, 4, n], dim=1)
        return cls(replace(whole, basis=content), codes.T, replace(whole, basis=answer))


@torch.no_grad()
def transparent_policy(
    function: Neurons, *, config: ACTConfig = CONFIG, seed: int = 0
) -> HookedACT:
    """The policy whose action is `function([latent, state, env_state])`, exact to about 1e-6.

    Args:
        function: neurons that read `N_INPUTS` numbers and write one number for each joint. The
            features are not normalised: dataset units are the network's.
        config: `CONFIG` with other switches, not with other sizes of its inputs.
        seed: of the directions in the stream.
    """
    model = blank_policy(config)
    wires = Wires.make(config, seed)
    carry_inputs(model, wires)
    return finished(_with_function(model, wires, function))


def carry_inputs(model: HookedACT, wires: Wires) -> None:
    """Write embedding, positions and the decoder's attention."""
    config, embed, block = model.config, model.embed, model.decoder[0]
    content, anchor = wires.content.basis, wires.content.anchor
    length, unit = wires.content.length, norm_scale_of_unit()
    parts = (LATENT, STATE, ENV)
    projections = (embed.latent_proj, embed.state_proj, embed.env_proj)
    for part, projection in zip(parts, projections, strict=True):
        projection.weight.copy_(content[:, part])
        projection.bias.copy_(length * anchor)
    embed.vector_pos.weight.copy_(wires.codes[:3])
    model.decoder.query_pos.weight.copy_(wires.codes[3].expand(config.chunk, -1))
    # All norms but the first two divide by 1: what they are given has variance 1 - eps.
    carried = norm_scale(wires.content, 0.0) * unit
    for head, part in enumerate(parts):
        write_head(
            block.cross_attn,
            head,
            queries=SHARP * wires.codes[3:],
            keys=wires.codes[head][None],
            values=carried * content[:, part].T,
            write=content[:, part],
        )
    block.attn.out_proj.bias.copy_(anchor)
    constant = math.sqrt(1 / config.d_model) / math.sqrt(1 / config.d_model + 1e-5)
    block.cross_attn.out_proj.bias.copy_((length - constant * math.sqrt(config.d_model)) * anchor)


def _with_function(model: HookedACT, wires: Wires, function: Neurons) -> HookedACT:
    """Write the last MLP, its norm and the head."""
    scale = norm_scale(wires.content, 0.0)
    into = wires.answer.basis.T
    # The MLP reads the inputs behind one norm, and an anchor that the threshold does not see.
    weight = scale * function.weight @ wires.content.basis.T
    stream = replace(
        function, weight=weight, value=function.value @ into, constant=function.constant @ into
    )
    stream = filled(stream, model.config.d_mlp)
    # The action vectors already hold the anchor once, at the length that a norm leaves.
    both = wires.answer.length + math.sqrt(model.config.d_model)
    changes = {
        **mlp_weights("decoder.0.mlp", stream, wires.answer),
        **tail_weights(
            "decoder.0.ln3",
            wires.answer,
            scale=norm_scale(replace(wires.answer, length=both), 0.0),
            bias=torch.zeros(model.config.action_dim),
        ),
    }
    state = model.state_dict()
    for name, value in changes.items():
        state[name].copy_(value)
    return model
