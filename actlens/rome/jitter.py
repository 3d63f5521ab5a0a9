"""Views of a scene that an edit should not tell apart: the average over them is the key k*."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from actlens.config import STATE_KEY, ACTConfig
from actlens.interventions.corruptions import Brightness, Contrast, Instant, Shift
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.rome.errors import EditError
from actlens.scene import Scene


@dataclass(frozen=True)
class Jitter:
    """Small random changes of light, camera and joint positions.

    They stand for ROME's random prefixes (Meng et al. 2022, section 3.1 and equation 3): what the
    same situation may look like.
    """

    n_views: int = 4
    """Beside the scene itself; each costs a forward."""
    light: float = 0.1
    """Brightness and contrast are multiplied by factors within 1 ± this."""
    shift: int = 1
    """Pictures move by at most so many pixels, all cameras alike."""
    state: float = 0.05
    """Standard deviation of noise on joint positions, as a share of their spread in the data."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_views < 0 or self.shift < 0 or not 0 <= self.light < 1 or self.state < 0:
            raise EditError(f"{self}: give counts and shares of 0 or more, and light below 1.")

    def views(self, model: HookedACT, scene: Scene) -> Iterator[Scene]:
        """The scene's views, the same for the same seed; the scene itself is not among them."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.n_views):
            brightness, contrast = (float(x) for x in 1 + self.light * rng.uniform(-1, 1, 2))
            steps = (int(x) for x in rng.integers(-self.shift, self.shift + 1, 2))
            seen: dict[str, Tensor] = dict(scene.observation)
            if model.config.cameras:
                for corruption in (Brightness(brightness), Contrast(contrast), Shift(*steps)):
                    seen = corruption.apply(seen, Instant())
            for key in _vectors(model.config):
                noise = torch.from_numpy(rng.standard_normal(seen[key].shape))
                spread = spread_of(model, key, seen[key])
                seen[key] = seen[key] + self.state * noise.to(spread) * spread
            yield replace(scene, observation=seen)


def _vectors(config: ACTConfig) -> list[str]:
    """The keys of what the policy reads beside pictures."""
    read = {STATE_KEY: config.state_dim, config.env_state_key: config.env_state_dim}
    return [key for key, size in read.items() if size is not None]


NO_JITTER = Jitter(n_views=0)
