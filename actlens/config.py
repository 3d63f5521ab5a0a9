"""The architecture of an ACT policy: the only place with its numbers."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from actlens.errors import ConfigError


class Backbone(StrEnum):
    """The ResNets that LeRobot's and the original ACT can use."""

    RESNET18 = "resnet18"
    RESNET34 = "resnet34"
    RESNET50 = "resnet50"

    @property
    def channels(self) -> int:
        """Channels of the last feature map (`layer4`)."""
        return 2048 if self is Backbone.RESNET50 else 512


class Activation(StrEnum):
    """Non-linearities of the MLPs that can run.

    LeRobot also offers `glu`, which halves the width that the second linear layer expects and so
    fails at any width; actlens refuses it when a configuration is read.
    """

    RELU = "relu"
    GELU = "gelu"


IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"
ENV_STATE_KEY = "observation.environment_state"
ACTION_KEY = "action"

# Names that the embedding module itself uses, so that no camera may have them.
_RESERVED_CAMERA_NAMES = frozenset({"state", "latent", "env_state", "backbone"})


@dataclass(frozen=True)
class Camera:
    """One camera: the observation key of its images and their size in pixels."""

    key: str
    height: int
    width: int

    @property
    def name(self) -> str:
        """The short name in hook points and tokens: `observation.images.top` -> `top`."""
        return self.key.removeprefix(IMAGE_PREFIX).removeprefix("observation.").replace(".", "_")


@dataclass(frozen=True)
class ACTConfig:
    """The shape of an ACT network and of its action queue; nothing about files or training data.

    Defaults are LeRobot's. `action_dim` and `state_dim` count joints; `chunk` counts control steps.

    Raises:
        ConfigError: on construction, if the numbers cannot make a network.
    """

    cameras: tuple[Camera, ...]
    action_dim: int
    state_dim: int | None
    env_state_dim: int | None = None
    chunk: int = 100
    n_action_steps: int = 100
    temporal_ensemble_coeff: float | None = None
    backbone: Backbone = Backbone.RESNET18
    dilation: bool = False
    """Replace the last stage's stride by dilation: feature maps of twice the height and width."""
    d_model: int = 512
    n_heads: int = 8
    d_mlp: int = 3200
    activation: Activation = Activation.RELU
    pre_norm: bool = False
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    """Decoder layers whose output is used. The original ACT builds 7 and uses the first: 1 here."""
    use_vae: bool = True
    latent_dim: int = 32
    n_vae_encoder_layers: int = 4
    dropout: float = 0.1
    joints: tuple[str, ...] = field(default=())
    """Names of the action dimensions, `joint_0` … where the checkpoint does not say."""
    env_state_key: str = ENV_STATE_KEY

    def __post_init__(self) -> None:
        if not self.joints:
            names = tuple(f"joint_{i}" for i in range(self.action_dim))
            object.__setattr__(self, "joints", names)
        for problem in self._problems():
            raise ConfigError(problem)

    def _problems(self) -> list[str]:
        """Every reason why these numbers cannot make an ACT, worst first."""
        found: list[str] = []
        positive = {
            "action_dim": self.action_dim,
            "chunk": self.chunk,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_mlp": self.d_mlp,
            "n_encoder_layers": self.n_encoder_layers,
            "n_decoder_layers": self.n_decoder_layers,
            "latent_dim": self.latent_dim,
            "n_vae_encoder_layers": self.n_vae_encoder_layers,
        }
        # The bounds are far above any ACT in use: they stop a hostile config from filling memory.
        limits = {"d_model": 8192, "d_mlp": 65536, "chunk": 4096, "action_dim": 1024}
        for name, value in positive.items():
            limit = limits.get(name, 512)
            if not 1 <= value <= limit:
                found.append(f"{name} must lie in 1..{limit}, got {value}.")
        if found:
            return found
        if self.d_model % self.n_heads:
            found.append(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}.")
        if self.cameras and self.d_model % 4:
            found.append(
                f"d_model {self.d_model} is not a multiple of 4, which the 2-D positions need."
            )
        if self.dilation and self.backbone is not Backbone.RESNET50:
            found.append(
                f"dilation needs bottleneck blocks, which {self.backbone} has not: use resnet50."
            )
        if not self.cameras and self.env_state_dim is None:
            found.append("ACT needs at least one camera or an environment state among its inputs.")
        for name in ("state_dim", "env_state_dim"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 4096:
                found.append(f"{name} must lie in 1..4096 or be None, got {value}.")
        if len(self.joints) != self.action_dim:
            found.append(f"{len(self.joints)} joint names for {self.action_dim} action dimensions.")
        if not 1 <= self.n_action_steps <= self.chunk:
            found.append(
                f"n_action_steps must lie in 1..chunk={self.chunk}, got {self.n_action_steps}."
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            found.append(
                "temporal ensembling queries the policy at every step: n_action_steps must be 1, "
                f"got {self.n_action_steps}."
            )
        if not 0 <= self.dropout < 1:
            found.append(f"dropout must lie in [0, 1), got {self.dropout}.")
        names = [camera.name for camera in self.cameras]
        for name in names:
            if (
                not name.isidentifier()
                or name.startswith("hook_")
                or name in _RESERVED_CAMERA_NAMES
            ):
                found.append(
                    f"camera {name!r} cannot name a hook point: use letters, digits, underscores, "
                    f"not hook_… or {sorted(_RESERVED_CAMERA_NAMES)}."
                )
        if len(set(names)) < len(names):
            found.append(f"camera names must differ, got {names}.")
        for camera in self.cameras:
            if not (1 <= camera.height <= 8192 and 1 <= camera.width <= 8192):
                found.append(f"camera {camera.name!r} has size {camera.height}x{camera.width}.")
        return found

    def grid(self, camera: Camera) -> tuple[int, int]:
        """Rows and columns of the camera's token grid: the size of ResNet's last feature map."""
        # Five stride-2 stages (kernel and padding make each ceil(n / 2)); dilation drops the last.
        stride = 16 if self.dilation else 32
        return math.ceil(camera.height / stride), math.ceil(camera.width / stride)

    @property
    def n_tokens(self) -> int:
        """Encoder tokens: latent, state, (env_state), then every camera's pixels."""
        grids = (self.grid(camera) for camera in self.cameras)
        return self.n_vector_tokens + sum(rows * cols for rows, cols in grids)

    @property
    def n_vector_tokens(self) -> int:
        """Tokens that are not pixels: latent, and state and environment state where declared."""
        return 1 + (self.state_dim is not None) + (self.env_state_dim is not None)

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads
