"""Everything that is read off one scene's attention, small enough to keep of many scenes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from actlens.attention.concentration import concentration, heads_and_mean, random_logits
from actlens.attention.weights import attention, logit_spread, norm_based, rollout
from actlens.interventions import SceneRun
from actlens.metrics import Positions, position_weights
from actlens.model.act import HookedACT
from actlens.scene import Scene


@dataclass(frozen=True)
class SceneAttention:
    """One scene's attention to the tokens, at every position of the chunk.

    Weights of tokens are means over heads and decoder blocks; each row sums to one.
    """

    episode: tuple[str, int]
    frame: int
    moment: int
    """Which of the moments that are looked at in every episode."""
    counted: Float[np.ndarray, " query"]
    """What each chunk position weighs; 0 behind the end of the demonstration."""
    attention: Float[np.ndarray, "query token"]
    norm: Float[np.ndarray, "query token"]
    """Norm-based (Kobayashi et al. 2020)."""
    rollout: Float[np.ndarray, "query token"]
    """To the encoder's input tokens (Abnar and Zuidema 2020)."""
    spread: Float[np.ndarray, "layer head query"]
    """Of the logits, over tokens."""
    concentration: Float[np.ndarray, "layer head_and_mean query measure"]
    null: Float[np.ndarray, "layer head_and_mean query measure"]
    """The same under random logits of the same spread."""

    def averaged(self, weights: Float[np.ndarray, "query token"]) -> Float[np.ndarray, " token"]:
        """Over the chunk positions that count."""
        return self.counted @ weights / self.counted.sum()


@torch.no_grad()
def read_attention(
    model: HookedACT,
    run: SceneRun,
    scene: Scene,
    *,
    moment: int = 0,
    positions: Positions = Positions.WHOLE,
    null_draws: int = 4,
    seed: int = 0,
) -> SceneAttention:
    """Read one scene's attention.

    Args:
        run: of the scene.
        moment: the number of the scene within its episode.
        null_draws: random patterns of every head at every position.
    """
    pattern, spread = attention(model, run), logit_spread(model, run)
    by_query = heads_and_mean(pattern.transpose(1, 2))  # layer query head_and_mean token
    null = random_logits(
        spread.transpose(1, 2).cpu(), pattern.shape[-1], draws=null_draws, seed=seed
    )
    array = lambda x: x.double().numpy(force=True)
    return SceneAttention(
        episode=(scene.source, scene.episode),
        frame=scene.frame,
        moment=moment,
        counted=position_weights(model.config, positions, [scene]).numpy(),
        attention=array(pattern.mean((0, 1))),
        norm=array(norm_based(model, run).mean(0)),
        rollout=array(rollout(model, run)),
        spread=array(spread),
        concentration=array(concentration(by_query).transpose(1, 2)),
        null=array(null.transpose(1, 2)),
    )
