"""A gate: the environment state decides where the decoder looks, and nothing else; saturated.

Its token's key matches the queries where the first number is positive, and fails them where it is
negative; what is read there is a constant of the token. Exact patching of that token restores all
of the action; the gradient of a saturated softmax is zero, so that attribution patching sees
nothing and must be flagged by its audit (Kramar et al. 2024).
"""

import torch

from actlens.config import ENV_STATE_KEY, STATE_KEY
from actlens.model.act import HookedACT
from actlens.planted.blank import SHARP, blank_policy, directions, finished, write_head
from actlens.planted.relay import CONFIG
from actlens.scene import Scene, ScenePair

GATE_TOKEN = "env_state"
"""The token whose patch restores everything, at every cut."""


@torch.no_grad()
def gated_policy() -> HookedACT:
    """The planted policy, float64: three encoder blocks, five chunk positions, six joints."""
    model = blank_policy(CONFIG)
    gate, mark, asking, anchor, *out = directions(64, 12, seed=1).T[:10]
    embed = model.embed
    embed.env_proj.weight[:, 0] = gate
    for projection in (embed.latent_proj, embed.state_proj, embed.env_proj):
        projection.bias.copy_(3 * anchor)
    embed.env_proj.bias.add_(3 * mark)
    block = model.decoder[0]
    block.attn.out_proj.bias.copy_(3 * anchor)
    model.decoder.query_pos.weight.copy_(asking.expand(5, -1))
    write_head(
        block.cross_attn,
        0,
        queries=SHARP * asking[None],
        keys=SHARP * gate[None],
        values=mark[None],
        write=out[0][:, None],
    )
    model.action_head.weight.copy_(torch.stack(out))
    return finished(model)


def gated_pair(seed: int = 0) -> ScenePair:
    """Two scenes on either side of the gate."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(6, generator=generator, dtype=torch.float64)
    sees = torch.zeros(6, dtype=torch.float64)
    sees[0] = 0.2
    scene = lambda env: Scene({STATE_KEY: state, ENV_STATE_KEY: env})
    return ScenePair(scene(sees), scene(-sees), "the gate")
