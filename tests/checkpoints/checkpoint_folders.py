"""Tiny checkpoints of every layout, written here by hand: never by the code under test."""

import json
import pickle

import numpy as np
import torch
from safetensors.torch import save_file

PRE = "policy_preprocessor.json"
POST = "policy_postprocessor.json"
PRE_STATE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
POST_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"

STATE = "observation.state"
ENV = "observation.environment_state"
CAMERAS = {"observation.images.top": (64, 96), "observation.images.side_cam": (64, 96)}


def config_json(*, cameras=(), env=True, **changes):
    """A `config.json` as LeRobot 0.4.4 writes it, with few and small layers."""
    inputs = {STATE: {"type": "STATE", "shape": [3]}}
    if env:
        inputs[ENV] = {"type": "ENV", "shape": [4]}
    for key in cameras:
        inputs[key] = {"type": "VISUAL", "shape": [3, *CAMERAS[key]]}
    return {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [2]}},
        "device": "cpu",
        "use_amp": False,
        "use_peft": False,
        "push_to_hub": False,
        "repo_id": "someone/something",
        "private": None,
        "tags": ["grasp"],
        "license": None,
        "pretrained_path": None,
        "chunk_size": 5,
        "n_action_steps": 5,
        "normalization_mapping": {
            "VISUAL": "MEAN_STD",
            "STATE": "MEAN_STD",
            "ENV": "MIN_MAX",
            "ACTION": "MEAN_STD",
        },
        "vision_backbone": "resnet18",
        "pretrained_backbone_weights": None,
        "replace_final_stride_with_dilation": False,
        "pre_norm": False,
        "dim_model": 8,
        "n_heads": 2,
        "dim_feedforward": 12,
        "feedforward_activation": "relu",
        "n_encoder_layers": 2,
        "n_decoder_layers": 1,
        "use_vae": True,
        "latent_dim": 4,
        "n_vae_encoder_layers": 1,
        "temporal_ensemble_coeff": None,
        "dropout": 0.1,
        "kl_weight": 10.0,
        "optimizer_lr": 1e-05,
        "optimizer_weight_decay": 0.0001,
        "optimizer_lr_backbone": 1e-05,
    } | changes


def attention(name, d=8):
    return {
        f"{name}.in_proj_weight": (3 * d, d),
        f"{name}.in_proj_bias": (3 * d,),
        f"{name}.out_proj.weight": (d, d),
        f"{name}.out_proj.bias": (d,),
    }


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norms(name, numbers):
    return {f"{name}.norm{n}.{part}": (8,) for n in numbers for part in ("weight", "bias")}


def encoder_layer(name):
    return (
        attention(f"{name}.self_attn")
        | linear(f"{name}.linear1", 8, 12)
        | linear(f"{name}.linear2", 12, 8)
        | norms(name, (1, 2))
    )


def decoder_layer(name):
    return (
        attention(f"{name}.self_attn")
        | attention(f"{name}.multihead_attn")
        | linear(f"{name}.linear1", 8, 12)
        | linear(f"{name}.linear2", 12, 8)
        | norms(name, (1, 2, 3))
    )


def shapes(*, cameras=(), env=True):
    """Every tensor of the network that `config_json` describes, written out."""
    all_shapes = (
        {
            "vae_encoder_cls_embed.weight": (1, 8),
            "vae_encoder_pos_enc": (1, 7, 8),
            "encoder_1d_feature_pos_embed.weight": (3 if env else 2, 8),
            "decoder_pos_embed.weight": (5, 8),
        }
        | encoder_layer("vae_encoder.layers.0")
        | linear("vae_encoder_robot_state_input_proj", 3, 8)
        | linear("vae_encoder_action_input_proj", 2, 8)
        | linear("vae_encoder_latent_output_proj", 8, 8)
        | encoder_layer("encoder.layers.0")
        | encoder_layer("encoder.layers.1")
        | decoder_layer("decoder.layers.0")
        | {"decoder.norm.weight": (8,), "decoder.norm.bias": (8,)}
        | linear("encoder_robot_state_input_proj", 3, 8)
        | linear("encoder_latent_input_proj", 4, 8)
        | linear("action_head", 8, 2)
    )
    if env:
        all_shapes |= linear("encoder_env_state_input_proj", 4, 8)
    if cameras:
        all_shapes |= {
            "encoder_img_feat_input_proj.weight": (8, 512, 1, 1),
            "encoder_img_feat_input_proj.bias": (8,),
        }
    return all_shapes


def weights(dtype=torch.float32, **kinds):
    """Random values; a backbone of small random numbers where there are cameras."""
    generator = torch.Generator().manual_seed(0)
    made = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes(**kinds).items()
    }
    if kinds.get("cameras"):
        from torchvision.models import resnet18
        from torchvision.ops.misc import FrozenBatchNorm2d

        trunk = resnet18(weights=None, norm_layer=FrozenBatchNorm2d).state_dict()
        made |= {
            f"backbone.{name}": tensor.to(dtype)
            for name, tensor in trunk.items()
            if not name.startswith("fc.")
        }
    return made


def statistics(cameras=()):
    """Every statistic that LeRobot 0.4 keeps, of every feature, one it never declared included."""
    generator = torch.Generator().manual_seed(1)
    sizes = {STATE: (3,), ENV: (4,), "action": (2,), "timestamp": (1,)}
    sizes |= dict.fromkeys(cameras, (3, 1, 1))
    made = {}
    for key, shape in sizes.items():
        low = torch.randn(shape, generator=generator)
        made[key] = {
            "mean": low,
            "std": torch.rand(shape, generator=generator) + 0.1,
            "min": low - 1,
            "max": low + 2,
            "q01": low - 0.9,
            "q99": low + 1.9,
            "q10": low - 0.5,
            "q90": low + 1.5,
            "count": torch.tensor([100.0]),
        }
    return made


def flat(stats):
    return {f"{key}.{name}": tensor for key, part in stats.items() for name, tensor in part.items()}


def processors(config):
    """`policy_preprocessor.json` and `policy_postprocessor.json` as LeRobot 0.4.4 writes them."""
    inputs, outputs = config["input_features"], config["output_features"]
    modes = config["normalization_mapping"]
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    normalizer = {
        "registry_name": "normalizer_processor",
        "config": {"eps": 1e-8, "features": inputs | outputs, "norm_map": modes},
        "state_file": PRE_STATE,
    }
    unnormalizer = {
        "registry_name": "unnormalizer_processor",
        "config": {"eps": 1e-8, "features": outputs, "norm_map": modes},
        "state_file": POST_STATE,
    }
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    to_batch = {"registry_name": "to_batch_processor", "config": {}}
    return {
        PRE: {"name": "policy_preprocessor", "steps": [rename, to_batch, device, normalizer]},
        POST: {"name": "policy_postprocessor", "steps": [unnormalizer, device]},
    }


def write_json(path, content):
    path.write_text(json.dumps(content))


def edit_json(path, edit):
    """Change a JSON file by a function that gets its content."""
    content = json.loads(path.read_text())
    edit(content)
    write_json(path, content)


def write_weights(folder, tensors):
    save_file(
        {f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )


def write_processors_layout(folder, *, cameras=(), env=True, model_file=None, **changes):
    """A LeRobot 0.4.4 folder; `model_file` is linked instead of writing weights anew."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(cameras=cameras, env=env, **changes)
    write_json(folder / "config.json", config)
    for name, content in processors(config).items():
        write_json(folder / name, content)
    for name in (PRE_STATE, POST_STATE):
        save_file(flat(statistics(cameras)), folder / name)
    if model_file is None:
        write_weights(folder, weights(cameras=cameras, env=env))
    else:
        (folder / "model.safetensors").hardlink_to(model_file)
    return folder


def buffers(features, stats):
    """Statistics among the weights, as LeRobot up to 0.3.3 keeps them."""
    made = {}
    for key, names in features.items():
        spelt = key.replace(".", "_")
        steps = (
            ("normalize_targets", "unnormalize_outputs")
            if key == "action"
            else ("normalize_inputs",)
        )
        for step in steps:
            for name in names:
                made[f"{step}.buffer_{spelt}.{name}"] = stats[key][name].clone()
    return made


def write_buffers_layout(folder, *, tensors=None, names=None, **changes):
    """A LeRobot 0.3.3 folder, without cameras unless `tensors` and `names` say so."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(**changes)
    for field in ("use_peft", "pretrained_path"):
        del config[field]
    write_json(folder / "config.json", config)
    names = names or {STATE: ("mean", "std"), ENV: ("min", "max"), "action": ("mean", "std")}
    made = {f"model.{name}": tensor for name, tensor in (tensors or weights()).items()}
    made |= buffers(names, statistics(config["input_features"].keys() - {STATE, ENV}))
    save_file(made, folder / "model.safetensors")
    return folder


def write_first_layout(folder, **changes):
    """A LeRobot folder of 2024: no `type`, shapes and modes by key, an older position name."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json()
    inputs, outputs = config["input_features"], config["output_features"]
    for field in (
        *("type", "input_features", "output_features", "normalization_mapping"),
        *("device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags", "license"),
        *("pretrained_path", "optimizer_lr", "optimizer_weight_decay", "optimizer_lr_backbone"),
    ):
        del config[field]
    config |= {
        "input_shapes": {key: entry["shape"] for key, entry in inputs.items()},
        "output_shapes": {key: entry["shape"] for key, entry in outputs.items()},
        "input_normalization_modes": {STATE: "mean_std", ENV: "min_max"},
        "output_normalization_modes": {"action": "mean_std"},
    }
    write_json(folder / "config.json", config | changes)
    tensors = weights()
    old = {"encoder_1d_feature_pos_embed.weight": "encoder_robot_and_latent_pos_embed.weight"}
    made = {f"model.{old.get(name, name)}": tensor for name, tensor in tensors.items()}
    names = {STATE: ("mean", "std"), ENV: ("min", "max"), "action": ("mean", "std")}
    save_file(made | buffers(names, statistics()), folder / "model.safetensors")
    return folder


ORIGINAL_NAMES = [
    # The longest names first: `encoder.` is the VAE's there.
    ("vae_encoder_cls_embed.", "cls_embed."),
    ("vae_encoder_robot_state_input_proj.", "encoder_joint_proj."),
    ("vae_encoder_action_input_proj.", "encoder_action_proj."),
    ("vae_encoder_latent_output_proj.", "latent_proj."),
    ("vae_encoder_pos_enc", "pos_table"),
    ("vae_encoder.", "encoder."),
    ("encoder_img_feat_input_proj.", "input_proj."),
    ("encoder_robot_state_input_proj.", "input_proj_robot_state."),
    ("encoder_latent_input_proj.", "latent_out_proj."),
    ("encoder_1d_feature_pos_embed.", "additional_pos_embed."),
    ("encoder.", "transformer.encoder."),
    ("decoder_pos_embed.", "query_embed."),
    ("decoder.", "transformer.decoder."),
    ("backbone.", "backbones.0.0.body."),
    ("action_head.", "action_head."),
]


def original_name(name):
    return next(
        theirs + name.removeprefix(ours) for ours, theirs in ORIGINAL_NAMES if name.startswith(ours)
    )


def original_state(tensors, *, trained=1):
    """The state dict that tonyzhaozh/act would save for these weights, with its dead parts.

    It builds seven decoder layers; only the first `trained` ones have moved biases.
    """
    generator = torch.Generator().manual_seed(2)
    state = {f"model.{original_name(name)}": tensor for name, tensor in tensors.items()}
    for layer in range(1, 7):
        for name, shape in decoder_layer(f"transformer.decoder.layers.{layer}").items():
            zero_at_first = "norm" in name or "attn" in name
            dead = layer >= trained and zero_at_first and name.endswith("bias")
            noise = torch.randn(shape, generator=generator)
            state[f"model.{name}"] = torch.zeros(shape) if dead else noise
    for name, shape in linear("is_pad_head", 8, 1).items():
        state[f"model.{name}"] = torch.randn(shape, generator=generator)
    return state


def original_statistics():
    rng = np.random.default_rng(0)
    return {
        "action_mean": rng.normal(size=2).astype(np.float32),
        "action_std": rng.uniform(0.01, 1, size=2).astype(np.float32),
        "qpos_mean": rng.normal(size=3).astype(np.float32),
        "qpos_std": rng.uniform(0.01, 1, size=3).astype(np.float32),
        "example_qpos": rng.normal(size=(40, 3)),
    }


def write_original(folder, state, *, stats=None, protocol=4, name="policy_best.ckpt", **save):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name, **save)
    with (folder / "dataset_stats.pkl").open("wb") as file:
        pickle.dump(original_statistics() if stats is None else stats, file, protocol=protocol)
    return folder
