"""From images, joint positions and the latent to the encoder's tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actlens.config import ACTConfig, Camera
from actlens.errors import ConfigError
from actlens.hooks import HookPoint
from actlens.model.backbone import STAGES, grid_position, resnet_trunk


@dataclass(frozen=True)
class Inputs:
    """What the network reads: normalised, batched, in the model's dtype and on its device."""

    images: tuple[Float[Tensor, "batch 3 height width"], ...]
    """One per camera, in the config's order; cameras may differ in size."""
    state: Float[Tensor, "batch joint"] | None
    env_state: Float[Tensor, "batch env"] | None
    batch_size: int


class CameraHooks(nn.Module):
    """The hook points of one camera's way through the shared trunk: one of each per camera."""

    pos: Tensor

    def __init__(self, config: ACTConfig, camera: Camera):
        super().__init__()
        self.hook_image = HookPoint("batch channel height width")
        for stage in STAGES:
            self.add_module(f"hook_{stage}", HookPoint("batch channel height width"))
        self.hook_tokens = HookPoint("batch pixel d_model")
        rows, cols = config.grid(camera)
        self.register_buffer("pos", grid_position(rows, cols, config.d_model), persistent=False)


class Embed(nn.Module):
    """The tokens before any layer: latent, state, (env_state), then each camera's pixels."""

    def __init__(self, config: ACTConfig, *, frozen_norm: bool = True):
        super().__init__()
        self.config = config
        self.joint_trunk = not frozen_norm
        """Batch norm that is being trained must see all cameras in one batch: its running
        statistics, which inference uses for every camera, would fit none of them otherwise."""
        d_model = config.d_model
        self.hook_latent = HookPoint("batch latent")
        self.latent_proj = nn.Linear(config.latent_dim, d_model)
        self.hook_latent_token = HookPoint("batch d_model")
        if config.state_dim is not None:
            self.state_proj = nn.Linear(config.state_dim, d_model)
            self.hook_state_token = HookPoint("batch d_model")
        if config.env_state_dim is not None:
            self.env_proj = nn.Linear(config.env_state_dim, d_model)
            self.hook_env_token = HookPoint("batch d_model")
        self.vector_pos = nn.Embedding(config.n_vector_tokens, d_model)
        if config.cameras:
            self.backbone = resnet_trunk(config, frozen_norm=frozen_norm)
            self.image_proj = nn.Conv2d(config.backbone.channels, d_model, kernel_size=1)
        for camera in config.cameras:
            if hasattr(self, camera.name):
                raise ConfigError(f"A camera cannot be called {camera.name!r}: rename its key.")
            self.add_module(camera.name, CameraHooks(config, camera))
        self.hook_tokens = HookPoint("batch token d_model")
        self.hook_pos = HookPoint("token d_model")

    def forward(
        self, inputs: Inputs, latent: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, "batch token d_model"], Float[Tensor, "token d_model"]]:
        """The tokens and their positions."""
        tokens = [self.hook_latent_token(self.latent_proj(self.hook_latent(latent)))[None]]
        if inputs.state is not None:
            tokens.append(self.hook_state_token(self.state_proj(inputs.state))[None])
        if inputs.env_state is not None:
            tokens.append(self.hook_env_token(self.env_proj(inputs.env_state))[None])
        pos = [self.vector_pos.weight]
        all_hooks = [self._hooks_of(camera) for camera in self.config.cameras]
        if self.joint_trunk and inputs.images:
            features = self._joint_features(inputs.images)
        else:
            # One camera after the other, so that hooks fire in the order in which they are listed.
            features = (
                self._features(image, hooks)
                for image, hooks in zip(inputs.images, all_hooks, strict=True)
            )
        for feature, hooks in zip(features, all_hooks, strict=True):
            pixels = hooks.hook_tokens(self.image_proj(feature).flatten(2).transpose(1, 2))
            tokens.append(pixels.transpose(0, 1))
            pos.append(hooks.pos)
        stacked = torch.cat(tokens).transpose(0, 1)  # token-major memory, batch-first view
        return self.hook_tokens(stacked), self.hook_pos(torch.cat(pos))

    def _hooks_of(self, camera: Camera) -> CameraHooks:
        hooks = self.get_submodule(camera.name)
        assert isinstance(hooks, CameraHooks)
        return hooks

    def _features(
        self, image: Float[Tensor, "batch 3 height width"], hooks: CameraHooks
    ) -> Float[Tensor, "batch channel row col"]:
        x = self._stem(hooks.hook_image(image))
        for stage in STAGES:
            x = hooks.get_submodule(f"hook_{stage}")(self.backbone[stage](x))
        return x

    def _joint_features(
        self, images: tuple[Float[Tensor, "batch 3 height width"], ...]
    ) -> list[Float[Tensor, "batch channel row col"]]:
        """The last feature maps of all cameras from one batch; stages are not hooked."""
        if len({image.shape for image in images}) > 1:
            raise ConfigError(
                "Batch norm can be trained only with cameras of equal size: freeze it, or resize."
            )
        x = self._stem(torch.cat(images))
        for stage in STAGES:
            x = self.backbone[stage](x)
        return list(x.chunk(len(images)))

    def _stem(self, x: Float[Tensor, "batch 3 height width"]) -> Tensor:
        trunk = self.backbone
        return trunk["maxpool"](trunk["relu"](trunk["bn1"](trunk["conv1"](x))))
