"""LeRobot's parameter names <-> HookedACT's: a pure renaming, no tensor is touched."""

import re

_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.", "embed.backbone."),
    (r"^encoder_img_feat_input_proj\.", "embed.image_proj."),
    (r"^encoder_robot_state_input_proj\.", "embed.state_proj."),
    (r"^encoder_env_state_input_proj\.", "embed.env_proj."),
    (r"^encoder_latent_input_proj\.", "embed.latent_proj."),
    (r"^encoder_1d_feature_pos_embed\.", "embed.vector_pos."),
    (r"^decoder_pos_embed\.", "decoder.query_pos."),
    (r"^decoder\.norm\.", "ln_final."),
    (r"^action_head\.", "action_head."),
    (r"^vae_encoder_cls_embed\.", "vae.cls."),
    (r"^vae_encoder_robot_state_input_proj\.", "vae.state_proj."),
    (r"^vae_encoder_action_input_proj\.", "vae.action_proj."),
    (r"^vae_encoder_latent_output_proj\.", "vae.latent_out_proj."),
    (r"^vae_encoder_pos_enc$", "vae.pos"),
    (r"^encoder\.norm\.", "encoder.ln_final."),
    (r"^vae_encoder\.norm\.", "vae.ln_final."),
    (r"^vae_encoder\.layers\.", "vae."),
    (r"^(encoder|decoder)\.layers\.", r"\1."),
)
_INSIDE_BLOCK: tuple[tuple[str, str], ...] = (
    (".self_attn.", ".attn."),
    (".multihead_attn.", ".cross_attn."),
    (".linear", ".mlp.linear"),
    (".norm", ".ln"),
)
_BLOCK = re.compile(r"^(encoder|decoder|vae)\.\d+\.")


def from_lerobot(name: str) -> str:
    """HookedACT's name of the parameter that LeRobot calls `name` (without its leading `model.`).

    >>> from_lerobot("decoder.layers.0.multihead_attn.out_proj.weight")
    'decoder.0.cross_attn.out_proj.weight'
    """
    for pattern, new in _RENAMES:
        renamed, count = re.subn(pattern, new, name)
        if count:
            name = renamed
            break
    if _BLOCK.match(name):
        for old, new in _INSIDE_BLOCK:
            name = name.replace(old, new)
    return name
