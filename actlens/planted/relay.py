"""A policy whose patching map is known exactly: the state reaches the action through a relay.

state token --(encoder block 0, head 0, values)--> env token --(decoder, head 0)--> action. The
decoder never attends to the state token, yet all of the action's dependence on the state comes
from it: attention is not the cause. The environment token's own content reaches the action too.
"""

import torch

from actlens.config import ENV_STATE_KEY, STATE_KEY, ACTConfig
from actlens.model.act import HookedACT
from actlens.planted.blank import SHARP, blank_policy, directions, finished, write_head
from actlens.scene import Scene, ScenePair

DENOISE_MAP = [[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]
"""Share restored by a clean token (columns latent, state, env_state) put into the corrupt run at
the stream entering encoder blocks 0, 1, 2 and at the encoder's output, for scenes that differ in
the state."""

CONFIG = ACTConfig(
    cameras=(), action_dim=6, state_dim=6, env_state_dim=6, chunk=5, n_action_steps=5,
    d_model=64, n_heads=2, d_mlp=32, n_encoder_layers=3, use_vae=False, dropout=0.0,
)  # fmt: skip


@torch.no_grad()
def relay_policy() -> HookedACT:
    """The planted policy, float64: three encoder blocks, five chunk positions, six joints."""
    model = blank_policy(CONFIG)
    basis = directions(64, 40)
    state, env, relayed, out = (basis[:, 6 * i : 6 * i + 6] for i in range(4))
    latent_code, state_code, env_code = (basis[:, 24 + i] for i in range(3))
    anchor = 3 * basis[:, 30]  # keeps every token's scale away from zero
    codes = torch.stack([latent_code, state_code, env_code])

    embed = model.embed
    embed.state_proj.weight.copy_(state)
    embed.env_proj.weight.copy_(env)
    for projection in (embed.latent_proj, embed.state_proj, embed.env_proj):
        projection.bias.copy_(anchor)
    embed.vector_pos.weight.copy_(codes)
    model.decoder.query_pos.weight.copy_(env_code.expand(5, -1))

    zero = torch.zeros_like(latent_code)
    # Keys hold each token's own code; queries the code they ask for: env asks for state.
    asked = SHARP**2 * torch.stack([latent_code, state_code + env_code, zero])
    write_head(model.encoder[0].attn, 0, queries=asked, keys=codes, values=state.T, write=relayed)
    decoder = model.decoder[0]
    write_head(
        decoder.cross_attn,
        0,
        queries=SHARP**2 * torch.stack([zero, zero, env_code]),
        keys=codes,
        values=torch.cat([relayed, env], 1).T,
        write=torch.cat([out, out], 1),
    )
    decoder.attn.out_proj.bias.copy_(anchor)
    model.action_head.weight.copy_(out.T)
    return finished(model)


def relay_pairs(n: int, seed: int = 0) -> list[ScenePair]:
    """Pairs of scenes that differ in the state alone, random numbers of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
    pairs = []
    for number in range(n):
        env = draw()
        clean, corrupt = (
            Scene({STATE_KEY: draw(), ENV_STATE_KEY: env}, episode=2 * number + i) for i in (0, 1)
        )
        pairs.append(ScenePair(clean, corrupt, "the state"))
    return pairs
