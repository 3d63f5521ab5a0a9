"""A policy whose patching map is known exactly: the state reaches the action through a relay.

state token --(encoder block 0, head 0, values)--> env token --(decoder, head 0)--> action. The
decoder never attends to the state token, yet all of the action's dependence on the state comes
from it. The environment token's own content reaches the action too.
"""

import torch

from actlens.config import ACTConfig
from actlens.model.act import HookedACT

# Share restored by a clean token (columns latent, state, env_state) put into the corrupt run at the
# stream entering encoder blocks 0, 1, 2 and at the encoder's output: by construction.
DENOISE_MAP = [[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]
SHARP = 60.0  # logits of attention that is 0 or 1 to float precision


def relay_policy() -> HookedACT:
    """The planted policy, float64, three encoder blocks, five chunk positions, six joints."""
    config = ACTConfig(
        cameras=(), action_dim=6, state_dim=6, env_state_dim=6, chunk=5, n_action_steps=5,
        d_model=64, n_heads=2, d_mlp=32, n_encoder_layers=3, use_vae=False, dropout=0.0,
    )  # fmt: skip
    model = HookedACT(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if ".ln" in f".{name}" and name.endswith("weight"):
                parameter.fill_(1.0)
        # An orthonormal basis orthogonal to the ones vector, which LayerNorm would take out.
        noise = torch.randn(64, 40, generator=generator, dtype=torch.float64)
        ones = torch.ones(64, 1, dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([ones, noise], 1))[0][:, 1:]
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
        encoder_queries = torch.stack([latent_code, state_code + env_code, zero])
        _set_head(model.encoder[0].attn, encoder_queries, codes, state.T, relayed)
        decoder = model.decoder[0]
        read = torch.cat([relayed, env], 1)
        write = torch.cat([out, out], 1)
        _set_head(decoder.cross_attn, torch.stack([zero, zero, env_code]), codes, read.T, write)
        decoder.attn.out_proj.bias.copy_(anchor)
        model.action_head.weight.copy_(out.T)
    return model


def _set_head(attn, queries, keys, values, write):
    """Head 0 of an attention: rows of queries, keys and values, columns of what it writes."""
    d_model = attn.out_proj.weight.shape[0]
    pad = lambda rows: torch.cat([rows, rows.new_zeros(d_model - len(rows), d_model)])
    attn.in_proj_weight.copy_(torch.cat([pad(SHARP * queries), pad(SHARP * keys), pad(values)]))
    attn.out_proj.weight.zero_()
    attn.out_proj.weight[:, : write.shape[1]] = write
