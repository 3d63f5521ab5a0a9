"""The CVAE encoder: an action chunk and the arm's state to the latent's distribution."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actlens.config import ACTConfig
from actlens.hooks import HookPoint
from actlens.model.encoder import Encoder


def sequence_position(length: int, d_model: int) -> Float[Tensor, "position d_model"]:
    """The fixed 1-D sine positions of "Attention is all you need", in float64 as LeRobot's."""
    exponent = 2 * (np.arange(d_model) // 2) / d_model
    table = np.arange(length)[:, None] / np.power(10000, exponent)
    table[:, 0::2] = np.sin(table[:, 0::2])
    table[:, 1::2] = np.cos(table[:, 1::2])
    return torch.from_numpy(table).float()


class VAEEncoder(Encoder):
    """Encoder blocks over `[cls, (state), action_0, …]`; runs only when actions are given."""

    pos: Tensor

    def __init__(self, config: ACTConfig):
        super().__init__(config, config.n_vae_encoder_layers, position="vae_token")
        d_model = config.d_model
        self.latent_dim = config.latent_dim
        self.cls = nn.Embedding(1, d_model)
        if config.state_dim is not None:
            self.state_proj = nn.Linear(config.state_dim, d_model)
        self.action_proj = nn.Linear(config.action_dim, d_model)
        self.latent_out_proj = nn.Linear(d_model, 2 * config.latent_dim)
        length = 1 + (config.state_dim is not None) + config.chunk
        self.register_buffer("pos", sequence_position(length, d_model)[None])
        self.hook_tokens = HookPoint("batch vae_token d_model")
        self.hook_mu = HookPoint("batch latent")
        self.hook_log_var = HookPoint("batch latent")

    def posterior(
        self,
        action: Float[Tensor, "batch chunk joint"],
        action_is_pad: Bool[Tensor, "batch chunk"],
        state: Float[Tensor, "batch joint"] | None,
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Mean and log variance of the latent, from normalised actions and state."""
        batch = len(action)
        tokens = [self.cls.weight[None].expand(batch, 1, -1)]
        if state is not None:
            tokens.append(self.state_proj(state)[:, None])
        tokens.append(self.action_proj(action))
        x = self.hook_tokens(torch.cat(tokens, 1))
        never = action_is_pad.new_zeros(batch, x.shape[1] - action.shape[1])
        mask = torch.cat((never, action_is_pad), 1)
        parameters = self.latent_out_proj(self(x, self.pos[0], mask)[:, 0])
        mu, log_var = parameters.split(self.latent_dim, -1)
        return self.hook_mu(mu), self.hook_log_var(log_var)
