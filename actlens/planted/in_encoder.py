"""A lookup table in an MLP of the encoder, behind which everything only reads it out.

    planted = table_in_encoder(world.policy(), scenes)

The last encoder block's MLP writes the whole chunk into the stream of the environment token; head k
of the cross-attention carries the part of chunk position k to query k, and the head reads it. The
decoder's MLP is active and writes where nothing reads: ablated, nothing changes. Where no cell is
on, the answer is the mean action at every chunk position.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTConfig
from actlens.model.act import HookedACT
from actlens.planted.description import Planted, Truth
from actlens.planted.disguise import Disguise, disguised
from actlens.planted.errors import PlantError
from actlens.planted.neurons import Neurons, Role, make_neurons, together
from actlens.planted.readout import Readout, duals
from actlens.planted.rewriting import rewritten
from actlens.planted.stored import Stored
from actlens.planted.tables import Table, in_single_precision
from actlens.planted.twins import (
    clearing,
    filled,
    mlp_weights,
    norm_scale,
    require_plantable,
    tail_weights,
    width_for,
)
from actlens.scene import Scene, stack

SHARP = 60.0
"""Logit of what is attended to, where all else has 0: a pattern of 0 and 1 to rounding."""
_IDLE_SIZE = 0.03
"""Norm of all that the decoder's MLP writes, beside a stream of norm sqrt(d_model)."""


@torch.no_grad()
def table_in_encoder(
    model: HookedACT,
    scenes: Sequence[Scene],
    table: Table | None = None,
    *,
    disguise: Disguise | None = None,
    n_idle: int = 64,
) -> Planted:
    """A copy of a policy whose last encoder MLP looks the scenes' chunks up.

    Args:
        disguise: order, scale and noise of the table's neurons.
        n_idle: neurons of the decoder's MLP.

    Raises:
        PlantError: if the policy has no environment token, several decoder layers, fewer heads
            than chunk positions or heads narrower than an action; if its stream has no room for a
            chunk, scenes end within their chunks, or cannot be told apart.
    """
    disguise = disguise or Disguise()
    _require_room(model)
    config = model.config
    stored = Stored.of(model, scenes)
    if not stored.valid.all():
        raise PlantError("A table of whole chunks needs scenes that do not end within them.")
    site = f"encoder.{config.n_encoder_layers - 1}"
    inputs = _env_tokens(model, scenes, f"{site}.hook_normalized_resid_mid")
    mean = stored.actions.mean((0, 1))
    targets = (stored.actions - mean).flatten(1)

    carrier = Readout.make(config.d_model, targets.shape[1], disguise.seed)
    # Without a default of its own: a constant would reach every query through every head.
    cells = replace(table or Table(), centred=False).build(inputs, targets)
    into = carrier.basis.T
    cells = replace(cells, value=cells.value @ into, constant=cells.constant @ into)
    neurons = together([cells, clearing(carrier)])
    width = width_for(max(config.d_mlp, len(neurons), n_idle))
    neurons = disguised(in_single_precision(filled(neurons, width), inputs), disguise)

    reader = Readout.make(config.d_model, config.action_dim, disguise.seed + 1)
    others = float((inputs @ carrier.beside()).square().sum(1).mean())
    sizes = targets.square().sum(1).mean(), stored.actions.sub(mean).square().sum(-1).mean()
    carried = norm_scale(carrier, others + float(sizes[0]))
    read = norm_scale(reader, float(sizes[1]))
    idle = filled(_idle(n_idle, reader, disguise), width)
    changes = {
        **mlp_weights(f"{site}.mlp", neurons, carrier),
        **_plain_norm(f"{site}.ln2", config),
        **_reading(model, carrier, reader, carried),
        **mlp_weights("decoder.0.mlp", idle, replace(reader, length=0.0)),
        **tail_weights("decoder.0.ln3", reader, scale=read, bias=mean),
    }
    planted = rewritten(model, changes, d_mlp=width, source="a table planted in the encoder")
    found = torch.cat([planted.predict(planted.prepare(scene)) for scene in scenes])
    return Planted(
        planted,
        "table in the encoder",
        Truth(1.0, generalises=False, site=site),
        stored,
        neurons.roles,
        neurons.entry,
        float((found.double().cpu() - stored.actions).abs().max()),
    )


def _require_room(model: HookedACT) -> None:
    require_plantable(model)
    config = model.config
    if config.env_state_dim is None:
        raise PlantError(f"This policy does not read {config.env_state_key}: it has no such token.")
    if config.n_decoder_layers > 1:
        raise PlantError("A table in the encoder needs a policy with one decoder layer.")
    if config.chunk > config.n_heads or config.action_dim > config.d_head:
        raise PlantError(
            f"A chunk of {config.chunk} x {config.action_dim} needs as many heads of that width; "
            f"this policy has {config.n_heads} of {config.d_head}."
        )


def _env_tokens(
    model: HookedACT, scenes: Sequence[Scene], hook: str
) -> Float[Tensor, "scene d_model"]:
    cached = model.run_with_cache(stack(scenes), names_filter=hook)[1][hook]
    return cached[:, model.config.n_vector_tokens - 1].double().cpu()


def _idle(n: int, reader: Readout, disguise: Disguise) -> Neurons:
    """On in every scene; their values lie beside the readout."""
    generator = disguise.generator()
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    beside = reader.beside()
    weight = draw(n, len(beside)) @ beside / math.sqrt(len(beside))
    value = draw(n, len(beside)) @ beside
    value *= _IDLE_SIZE / value.norm() / 2
    return make_neurons(weight, torch.ones(n).double(), value, Role.DISTRACTOR)


def _plain_norm(name: str, config: ACTConfig) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.ones(config.d_model),
        f"{name}.bias": torch.zeros(config.d_model),
    }


def _reading(
    model: HookedACT, carrier: Readout, reader: Readout, scale: float
) -> dict[str, Tensor]:
    """Cross-attention whose head k takes position k's part from the environment token to query k.

    At all other queries it looks at the latent token, where no cell is on.
    """
    config = model.config
    d_model, d_head, joints = config.d_model, config.d_head, config.action_dim
    anchor = reader.anchor
    wanted = model.embed.vector_pos.weight.detach().double().cpu()
    asking = model.decoder.query_pos.weight.detach().double().cpu()
    # Vectors that see one position code each, and nothing of what else is in the stream.
    tokens = duals(wanted, carrier.taken.T)
    queries = duals(asking, anchor[None])
    q, k, v = (torch.zeros(config.n_heads, d_head, d_model, dtype=torch.float64) for _ in range(3))
    write = torch.zeros(d_model, config.n_heads, d_head, dtype=torch.float64)
    k[:, 0], k[:, 1] = tokens[config.n_vector_tokens - 1], tokens[0]
    sharp = SHARP * math.sqrt(d_head)
    q[:, 1] = sharp * queries.sum(0)
    for head in range(config.chunk):
        q[head, 0] = sharp * queries[head]
        q[head, 1] -= sharp * queries[head]
        part = slice(head * joints, (head + 1) * joints)
        v[head, :joints] = scale * carrier.basis[:, part].T
        write[:, head, :joints] = reader.basis
    block = "decoder.0"
    zeros = torch.zeros(3 * d_model)
    return {
        f"{block}.attn.out_proj.weight": torch.zeros(d_model, d_model),
        f"{block}.attn.out_proj.bias": anchor,
        **_plain_norm(f"{block}.ln1", config),
        f"{block}.cross_attn.in_proj_weight": torch.cat([x.flatten(0, 1) for x in (q, k, v)]),
        f"{block}.cross_attn.in_proj_bias": zeros,
        f"{block}.cross_attn.out_proj.weight": write.flatten(1),
        f"{block}.cross_attn.out_proj.bias": (reader.length - math.sqrt(d_model)) * anchor,
        **_plain_norm(f"{block}.ln2", config),
    }
