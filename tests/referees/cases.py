"""The architectures on which HookedACT must equal LeRobot's ACT; plain data, read by both sides.

The LeRobot interpreter imports this file without actlens: keep it free of imports.
"""

BASE = {
    "cameras": {"top": [64, 96], "lateral": [64, 96]},
    "state_dim": 6,
    "env_state_dim": None,
    "action_dim": 6,
    "chunk_size": 8,
    "vision_backbone": "resnet18",
    "replace_final_stride_with_dilation": False,
    "pre_norm": False,
    "dim_model": 32,
    "n_heads": 4,
    "dim_feedforward": 48,
    "feedforward_activation": "relu",
    "n_encoder_layers": 2,
    "n_decoder_layers": 1,
    "use_vae": True,
    "latent_dim": 8,
    "n_vae_encoder_layers": 2,
    "batch": 2,
}

CASES = {
    "default_two_cameras": {},
    "batch_of_one": {"batch": 1},
    "batch_of_five": {"batch": 5},
    "one_camera": {"cameras": {"top": [64, 96]}},
    "three_cameras_of_different_sizes": {
        "cameras": {"top": [64, 96], "wrist": [96, 64], "side": [33, 50]}
    },
    "pre_norm": {"pre_norm": True},
    "pre_norm_two_decoder_layers": {"pre_norm": True, "n_decoder_layers": 2},
    "gelu": {"feedforward_activation": "gelu"},
    "seven_decoder_layers": {"n_decoder_layers": 7},
    "four_encoder_layers_eight_heads": {"n_encoder_layers": 4, "n_heads": 8, "dim_model": 64},
    "no_vae": {"use_vae": False},
    "no_state": {"state_dim": None},
    "state_and_environment_state": {"env_state_dim": 5},
    "environment_state_only": {"cameras": {}, "env_state_dim": 7},
    "fourteen_joints": {"state_dim": 14, "action_dim": 14},
    "state_and_action_of_different_size": {"state_dim": 9, "action_dim": 4},
    "resnet34": {"vision_backbone": "resnet34", "cameras": {"top": [64, 64]}},
    "resnet50_dilated": {
        "vision_backbone": "resnet50",
        "replace_final_stride_with_dilation": True,
        "cameras": {"top": [64, 64]},
    },
}


def case(name):
    """The full description of one case."""
    return BASE | CASES[name]
