"""Which tensors an ACT of a given configuration has, and of which shapes."""

from functools import cache

from actlens.config import ACTConfig, Backbone

Shape = tuple[int, ...]


def expected_shapes(config: ACTConfig) -> dict[str, Shape]:
    """Shapes by LeRobot's parameter names, without the leading `model.`.

    Nothing is allocated. The names and shapes are those of LeRobot's `ACT` (0.1 to 0.6.1), its
    buffers included: the VAE's positions and the frozen batch norms.
    """
    width = config.d_model
    shapes: dict[str, Shape] = {}
    if config.use_vae:
        shapes |= _encoder("vae_encoder", config, config.n_vae_encoder_layers)
        shapes["vae_encoder_cls_embed.weight"] = (1, width)
        if config.state_dim is not None:
            shapes |= _linear("vae_encoder_robot_state_input_proj", config.state_dim, width)
        shapes |= _linear("vae_encoder_action_input_proj", config.action_dim, width)
        shapes |= _linear("vae_encoder_latent_output_proj", width, 2 * config.latent_dim)
        n_tokens = 1 + (config.state_dim is not None) + config.chunk
        shapes["vae_encoder_pos_enc"] = (1, n_tokens, width)
    if config.cameras:
        shapes |= {f"backbone.{name}": shape for name, shape in _backbone(config.backbone).items()}
    shapes |= _encoder("encoder", config, config.n_encoder_layers)
    for layer in range(config.n_decoder_layers):
        shapes |= _decoder_layer(f"decoder.layers.{layer}", config)
    shapes |= _norm("decoder.norm", width)
    if config.state_dim is not None:
        shapes |= _linear("encoder_robot_state_input_proj", config.state_dim, width)
    if config.env_state_dim is not None:
        shapes |= _linear("encoder_env_state_input_proj", config.env_state_dim, width)
    shapes |= _linear("encoder_latent_input_proj", config.latent_dim, width)
    if config.cameras:
        shapes["encoder_img_feat_input_proj.weight"] = (width, config.backbone.channels, 1, 1)
        shapes["encoder_img_feat_input_proj.bias"] = (width,)
    shapes["encoder_1d_feature_pos_embed.weight"] = (config.n_vector_tokens, width)
    shapes["decoder_pos_embed.weight"] = (config.chunk, width)
    return shapes | _linear("action_head", width, config.action_dim)


def _linear(name: str, n_in: int, n_out: int) -> dict[str, Shape]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: int) -> dict[str, Shape]:
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **_linear(f"{name}.out_proj", width, width),
    }


def _encoder(name: str, config: ACTConfig, n_layers: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer in range(n_layers):
        prefix = f"{name}.layers.{layer}"
        shapes |= _attention(f"{prefix}.self_attn", config.d_model)
        shapes |= _linear(f"{prefix}.linear1", config.d_model, config.d_mlp)
        shapes |= _linear(f"{prefix}.linear2", config.d_mlp, config.d_model)
        shapes |= _norm(f"{prefix}.norm1", config.d_model)
        shapes |= _norm(f"{prefix}.norm2", config.d_model)
    if config.pre_norm:
        shapes |= _norm(f"{name}.norm", config.d_model)
    return shapes


def _decoder_layer(name: str, config: ACTConfig) -> dict[str, Shape]:
    shapes = _attention(f"{name}.self_attn", config.d_model)
    shapes |= _attention(f"{name}.multihead_attn", config.d_model)
    shapes |= _linear(f"{name}.linear1", config.d_model, config.d_mlp)
    shapes |= _linear(f"{name}.linear2", config.d_mlp, config.d_model)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= _norm(f"{name}.{norm}", config.d_model)
    return shapes


@cache
def _backbone(backbone: Backbone) -> dict[str, Shape]:
    """The ResNet up to `layer4`, with frozen batch norms, as torchvision names it."""
    import torch
    from torchvision import models
    from torchvision.ops.misc import FrozenBatchNorm2d

    build = {
        Backbone.RESNET18: models.resnet18,
        Backbone.RESNET34: models.resnet34,
        Backbone.RESNET50: models.resnet50,
    }[backbone]
    with torch.device("meta"):
        network = build(weights=None, norm_layer=FrozenBatchNorm2d)
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.startswith("fc.")
    }
