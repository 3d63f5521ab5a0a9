"""Run by LeRobot's own interpreter: LeRobot's ACT on every case, everything it computes saved.

Usage: python lerobot_forward.py OUT_DIR. Writes OUT_DIR/CASE.safetensors with

    weight.NAME   state dict, every entry away from its initial value
    input.KEY     the (already normalised) batch
    eval.MODULE   output of every module in eval mode (repeated calls: MODULE#1, …)
    eval.actions  the actions
    train.*       the same in training mode (dropout 0), where the CVAE runs; train.latent is its z
    grad.NAME     gradients in training mode of sum(actions * input.cotangent) with that z, and for
                  the CVAE encoder of the weighted sum (input.cotangent_latent) of z's parameters
"""

import sys
from functools import partial
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACT
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, case


def build(spec):
    inputs = {}
    if spec["state_dim"]:
        inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (spec["state_dim"],))
    if spec["env_state_dim"]:
        inputs["observation.environment_state"] = PolicyFeature(
            FeatureType.ENV, (spec["env_state_dim"],)
        )
    for name, (height, width) in spec["cameras"].items():
        inputs[f"observation.images.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, height, width))
    fields = {
        key: spec[key]
        for key in spec
        if key not in ("cameras", "state_dim", "env_state_dim", "action_dim", "batch")
    }
    config = ACTConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (spec["action_dim"],))},
        n_action_steps=spec["chunk_size"],
        pretrained_backbone_weights=None,
        dropout=0.0,
        device="cpu",
        **fields,
    )
    return ACT(config)


def perturb(model, generator):
    """Move every weight, bias and frozen norm away from zeros and ones, which would hide bugs."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "vae_encoder_pos_enc":
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.mul_(1 + 0.2 * noise.abs())
            elif tensor.ndim <= 1:
                tensor.add_(0.1 * noise)


def record(model, batch):
    """The actions, and every module's tensor output by name and call number."""
    outputs, handles = {}, []

    def keep(name):
        def hook(module, args, output):
            if isinstance(output, dict):
                output = output["feature_map"]
            if isinstance(output, tuple):
                output = output[0]
            if isinstance(output, torch.Tensor):
                seen = sum(key == name or key.startswith(f"{name}#") for key in outputs)
                outputs[f"{name}#{seen}" if seen else name] = output.detach().clone().contiguous()

        return hook

    latent = {}
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(keep(name)))
    handles.append(
        model.encoder_latent_input_proj.register_forward_pre_hook(
            lambda module, args: latent.update(z=args[0].detach().clone())
        )
    )
    actions, parameters = model(batch)
    for handle in handles:
        handle.remove()
    return actions, parameters, outputs, latent["z"]


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for number, name in enumerate(CASES):
        spec = case(name)
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        model = build(spec)
        perturb(model, generator)
        rand = partial(torch.randn, generator=generator)
        n = spec["batch"]
        batch = {"observation.state": rand(n, spec["state_dim"] or 1)}
        if spec["env_state_dim"]:
            batch["observation.environment_state"] = rand(n, spec["env_state_dim"])
        images = {
            f"observation.images.{camera}": rand(n, 3, *size)
            for camera, size in spec["cameras"].items()
        }
        saved = {f"input.{key}": value for key, value in (batch | images).items()}
        if images:
            batch["observation.images"] = list(images.values())
        action = rand(n, spec["chunk_size"], spec["action_dim"])
        is_pad = torch.zeros(n, spec["chunk_size"], dtype=torch.bool)
        is_pad[0, -3:] = True
        cotangent = rand(n, spec["chunk_size"], spec["action_dim"])
        saved |= {"input.action": action, "input.action_is_pad": is_pad}
        saved["input.cotangent"] = cotangent
        saved |= {f"weight.{key}": value.clone() for key, value in model.state_dict().items()}

        model.eval()
        with torch.no_grad():
            actions, _, outputs, _ = record(model, batch)
        saved |= {f"eval.{key}": value for key, value in outputs.items()}
        saved["eval.actions"] = actions.contiguous()

        model.train()
        actions, parameters, outputs, latent = record(
            model, batch | {"action": action, "action_is_pad": is_pad}
        )
        (actions * cotangent).sum().backward(retain_graph=True)
        saved |= {f"train.{key}": value for key, value in outputs.items()}
        saved |= {"train.actions": actions.detach().contiguous(), "train.latent": latent}
        saved |= {
            f"grad.{key}": parameter.grad.clone()
            for key, parameter in model.named_parameters()
            if parameter.grad is not None and not key.startswith("vae_")
        }
        if spec["use_vae"]:
            model.zero_grad()
            weight = rand(n, 2 * spec["latent_dim"])
            (torch.cat(parameters, -1) * weight).sum().backward()
            saved["input.cotangent_latent"] = weight
            saved |= {
                f"grad.{key}": parameter.grad.clone()
                for key, parameter in model.named_parameters()
                if key.startswith("vae_")
            }
        save_file(saved, out / f"{name}.safetensors")


main(Path(sys.argv[1]))
