"""HookedACT against LeRobot's own ACT: every module's output, the actions, the gradients."""

import re

import pytest
import torch
from cases import CASES, case
from safetensors.torch import load_file

from actlens.model.attention import Attention


@pytest.fixture(scope="module")
def lerobot_outputs(run_lerobot, tmp_path_factory):
    """One run of LeRobot for all cases; a function that reads a case's tensors."""
    out = tmp_path_factory.mktemp("lerobot")
    run_lerobot("lerobot_forward.py", out)
    # Copied: the file's mapped memory is not aligned, and MKL's last bits depend on alignment.
    return lambda name: {
        key: value.clone() for key, value in load_file(out / f"{name}.safetensors").items()
    }


def build(spec, saved):
    from actlens.config import ACTConfig, Activation, Backbone, Camera
    from actlens.model.act import HookedACT
    from actlens.model.lerobot_names import from_lerobot

    config = ACTConfig(
        cameras=tuple(
            Camera(f"observation.images.{name}", *size) for name, size in spec["cameras"].items()
        ),
        action_dim=spec["action_dim"],
        state_dim=spec["state_dim"],
        env_state_dim=spec["env_state_dim"],
        chunk=spec["chunk_size"],
        n_action_steps=spec["chunk_size"],
        backbone=Backbone(spec["vision_backbone"]),
        dilation=spec["replace_final_stride_with_dilation"],
        d_model=spec["dim_model"],
        n_heads=spec["n_heads"],
        d_mlp=spec["dim_feedforward"],
        activation=Activation(spec["feedforward_activation"]),
        pre_norm=spec["pre_norm"],
        n_encoder_layers=spec["n_encoder_layers"],
        n_decoder_layers=spec["n_decoder_layers"],
        use_vae=spec["use_vae"],
        latent_dim=spec["latent_dim"],
        n_vae_encoder_layers=spec["n_vae_encoder_layers"],
        dropout=0.0,
    )
    model = HookedACT(config)
    weights = {
        from_lerobot(name.removeprefix("weight.")): value
        for name, value in saved.items()
        if name.startswith("weight.")
    }
    model.load_state_dict(weights, strict=True)
    return model


def inputs_of(saved, spec):
    from actlens.model.embed import Inputs

    return Inputs(
        images=tuple(saved[f"input.observation.images.{name}"] for name in spec["cameras"]),
        state=saved["input.observation.state"] if spec["state_dim"] else None,
        env_state=saved.get("input.observation.environment_state"),
        batch_size=spec["batch"],
    )


def hook_name(module, spec):
    """The hook point that holds what LeRobot's `module` returns; None for the trunk's insides."""
    pre = spec["pre_norm"]
    cameras = list(spec["cameras"])
    name, _, call = module.partition("#")
    per_camera = name in ("backbone", "encoder_img_feat_input_proj") or name.count(".") == 1
    camera = (
        cameras[int(call or 0)]
        if cameras and per_camera and len(cameras) > int(call or 0)
        else None
    )
    stage = re.fullmatch(r"backbone\.(layer\d)", name)
    if stage:
        return f"embed.{camera}.hook_{stage[1]}"
    if name == "backbone":
        return f"embed.{camera}.hook_layer4"
    if name == "encoder_img_feat_input_proj":
        return f"embed.{camera}.hook_tokens"
    if name.startswith("backbone.") or name == "encoder_cam_feat_pos_embed":
        return None
    top = {
        "encoder_latent_input_proj": "embed.hook_latent_token",
        "encoder_robot_state_input_proj": "embed.hook_state_token",
        "encoder_env_state_input_proj": "embed.hook_env_token",
        "encoder": "encoder.hook_out",
        "encoder.norm": "encoder.hook_out",
        "vae_encoder": "vae.hook_out",
        "vae_encoder.norm": "vae.hook_out",
        "action_head": "hook_actions_normalized",
    }
    if name in top:
        return top[name]
    block = re.fullmatch(r"(vae_encoder|encoder|decoder)\.layers\.(\d+)(?:\.(.*))?", name)
    if block is None:
        return None
    stack, layer, part = block.groups()
    prefix = f"{'vae' if stack == 'vae_encoder' else stack}.{layer}"
    decoder = stack == "decoder"
    after = (
        ["hook_normalized_resid_mid"]
        + (["hook_normalized_resid_mid_cross"] if decoder else [])
        + ["hook_normalized_resid_post"]
    )
    before = ["hook_normalized_resid_pre", *after[:-1]]
    norms = dict(zip(("norm1", "norm2", "norm3"), before if pre else after, strict=False))
    mlp_dropout = "dropout3" if decoder else "dropout2"
    return (
        f"{prefix}."
        + {
            None: "hook_resid_post" if pre else "hook_normalized_resid_post",
            "self_attn": "hook_attn_out",
            "dropout1": "hook_attn_out",
            "multihead_attn": "hook_cross_attn_out",
            "linear1": "mlp.hook_pre",
            "dropout": "mlp.hook_post",
            "linear2": "hook_mlp_out",
            mlp_dropout: "hook_mlp_out",
            **({"dropout2": "hook_cross_attn_out"} if decoder else {}),
            **norms,
        }[part]
    )


def run_watched(model, inputs, latent, names):
    """Normalised actions, the cache of `names`, and the trunk's inner outputs by call."""
    inner, handles, cache = {}, [], {}

    def keep(name):
        def hook(module, args, output):
            seen = sum(key == name or key.startswith(f"{name}#") for key in inner)
            inner[f"{name}#{seen}" if seen else name] = output.detach().clone()

        return hook

    if model.config.cameras:
        for name, module in model.embed.backbone.named_modules():
            if name:
                handles.append(module.register_forward_hook(keep(f"backbone.{name}")))
    store, forward, _ = model.get_caching_hooks(names)
    with model.hooks(fwd_hooks=forward):
        actions = model.predict(inputs, latent)
    for handle in handles:
        handle.remove()
    cache.update(store)
    return actions, cache, inner


def to_lerobot_layout(ours, theirs):
    """Batch-first tokens -> LeRobot's token-first; pixel tokens -> its feature map."""
    if ours.ndim == 3 and theirs.ndim == 4:
        return ours.transpose(1, 2).reshape(theirs.shape)
    if ours.ndim == 3 and ours.shape != theirs.shape:
        return ours.transpose(0, 1)
    return ours


def compare_all(saved, mode, spec, actions, cache, inner, model, check):
    compared = 0
    for key, theirs in saved.items():
        kind, _, module = key.partition(".")
        if kind != mode or module in ("actions", "latent"):
            continue
        name = hook_name(module, spec)
        if module in ("decoder", "decoder.norm"):
            ours = cache["ln_final_out"]
        elif module.startswith("vae_encoder_"):
            if module != "vae_encoder_latent_output_proj":
                continue  # the parts of vae.hook_tokens, compared through what they feed
            ours = torch.cat([cache["vae.hook_mu"], cache["vae.hook_log_var"]], -1)
        elif module.startswith("encoder_cam_feat_pos_embed"):
            camera = list(spec["cameras"])[int(module.partition("#")[2] or 0)]
            ours = model.embed.get_submodule(camera).pos[None]
        else:
            ours = inner[module] if name is None else cache[name]
        ambiguous = ours.shape[0] == ours.shape[1] if ours.ndim == 3 else False
        assert not ambiguous, f"{module}: batch and token axes cannot be told apart"
        check(to_lerobot_layout(ours, theirs), theirs, module)
        compared += 1
    check(actions, saved[f"{mode}.actions"], "actions")
    return compared


def bit_equal(ours, theirs, what):
    assert torch.equal(ours, theirs), f"{what}: max difference {(ours - theirs).abs().max():.3g}"


def close(ours, theirs, what):
    scale = theirs.abs().max().clamp_min(1e-3)
    assert (ours - theirs).abs().max() <= 1e-5 * scale, what


def forward(model, saved, spec, latent=None, names=None):
    final = {}
    with model.hooks():
        handle = model.ln_final.register_forward_hook(
            lambda module, args, output: final.update(ln_final_out=output)
        )
        actions, cache, inner = run_watched(model, inputs_of(saved, spec), latent, names)
        handle.remove()
    return actions, cache | final, inner


@pytest.mark.parametrize("name", CASES)
def test_every_module_output_and_the_actions_equal_lerobots_bit_for_bit(name, lerobot_outputs):
    spec, saved = case(name), lerobot_outputs(name)
    model = build(spec, saved).eval()
    with torch.no_grad():
        actions, cache, inner = forward(model, saved, spec)
    compared = compare_all(saved, "eval", spec, actions, cache, inner, model, bit_equal)
    assert compared > 20


@pytest.mark.parametrize("name", CASES)
def test_with_fused_attention_every_module_output_agrees_to_1e_5(
    name, lerobot_outputs, monkeypatch
):
    spec, saved = case(name), lerobot_outputs(name)
    model = build(spec, saved).eval()
    model.fused_attention = True
    # A hook on scores or pattern would make its block step aside to explicit attention.
    looked_into = ("hook_attn_scores", "hook_pattern")
    names = lambda name: not (name.endswith(looked_into) or model.hook_point(name).on_demand)
    monkeypatch.setattr(Attention, "_explicit", None)
    with torch.no_grad():
        actions, cache, inner = forward(model, saved, spec, names=names)
    assert compare_all(saved, "eval", spec, actions, cache, inner, model, close) > 20


@pytest.mark.parametrize("name", CASES)
def test_training_pass_with_the_posterior_latent_equals_lerobots(name, lerobot_outputs):
    spec, saved = case(name), lerobot_outputs(name)
    model = build(spec, saved).train()
    inputs = inputs_of(saved, spec)
    latent = saved["train.latent"]
    with torch.no_grad():
        actions, cache, inner = forward(model, saved, spec, latent)
        if spec["use_vae"]:
            store, hooks, _ = model.get_caching_hooks(lambda n: n.startswith("vae."))
            hooks = [(n, f) for n, f in hooks if not model.hook_point(n).on_demand]
            with model.hooks(fwd_hooks=hooks):
                model.posterior(inputs, saved["input.action"], saved["input.action_is_pad"])
            cache |= store
    compare_all(saved, "train", spec, actions, cache, inner, model, bit_equal)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_lerobots_to_1e_4(name, lerobot_outputs):
    from actlens.model.lerobot_names import from_lerobot

    spec, saved = case(name), lerobot_outputs(name)
    model = build(spec, saved).train()
    inputs = inputs_of(saved, spec)
    (model.predict(inputs, saved["train.latent"]) * saved["input.cotangent"]).sum().backward()
    if spec["use_vae"]:
        given = saved["input.action"], saved["input.action_is_pad"]
        parameters = torch.cat(model.posterior(inputs, *given), -1)
        (parameters * saved["input.cotangent_latent"]).sum().backward()
        assert any(key.startswith("grad.vae_encoder.layers.") for key in saved)
    ours = dict(model.named_parameters())
    compared = 0
    # Gradients that are zero in exact arithmetic (the first decoder self-attention's queries and
    # keys) are rounding on both sides: they are held to the scale of the largest gradient.
    largest = max(v.abs().max() for k, v in saved.items() if k.startswith("grad."))
    for key, theirs in saved.items():
        if key.startswith("grad."):
            gradient = ours[from_lerobot(key.removeprefix("grad."))].grad
            scale = theirs.abs().max().clamp_min(1e-4 * largest)
            assert (gradient - theirs).abs().max() <= 1e-4 * scale, key
            compared += 1
    assert compared > 20
