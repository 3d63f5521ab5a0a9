"""Run by LeRobot's own interpreter: checkpoints written and read by LeRobot itself.

Usage: python lerobot_checkpoints.py write OUT_DIR
       python lerobot_checkpoints.py compare DIR_A DIR_B [DIR_C DIR_D …]
       python lerobot_checkpoints.py migrate OLD_DIR NEW_DIR

`write` makes OUT_DIR/CASE (a `pretrained_model` folder) and OUT_DIR/CASE.safetensors with

    raw.KEY        an observation in dataset units, as LeRobot's preprocessor takes it
    normalized.KEY the same after LeRobot's preprocessor
    actions.*      a chunk in normalised units and after LeRobot's postprocessor

`compare` loads both folders of each pair strictly and runs both with their own processors on the
same observations. It prints a line for each pair: `equal` if the configuration, every weight and
every action are equal bit for bit, else what is not.
"""

import sys
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import save_file

MODES = {
    "mean_std": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    "min_max": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"},
    "quantiles": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    "quantile10": {"VISUAL": "MIN_MAX", "STATE": "QUANTILE10", "ACTION": "QUANTILE10"},
}
CASES = {
    "mean_std": {"modes": "mean_std", "cameras": {"top": (64, 96), "side_cam": (96, 64)}},
    "min_max": {"modes": "min_max", "cameras": {}, "env": 4},
    "quantiles": {"modes": "quantiles", "cameras": {"top": (64, 64)}, "pre_norm": True},
    "quantile10": {"modes": "quantile10", "cameras": {"top": (64, 64)}, "use_vae": False},
    "seven_layers": {"modes": "mean_std", "cameras": {}, "env": 4, "n_decoder_layers": 7},
    "bfloat16": {"modes": "mean_std", "cameras": {}, "env": 4, "dtype": torch.bfloat16},
    "ensemble": {"modes": "mean_std", "cameras": {}, "env": 4, "temporal_ensemble_coeff": 0.01},
}


def features(spec):
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    if "env" in spec:
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (spec["env"],))
    for name, size in spec["cameras"].items():
        key = f"observation.images.{name}"
        inputs[key] = PolicyFeature(FeatureType.VISUAL, (3, *size))
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (5,))}


def statistics(inputs, outputs, generator):
    """Made-up statistics with a component that never moved and one that hardly did."""
    made = {}
    for key, feature in {**inputs, **outputs}.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        low = torch.randn(shape, generator=generator)
        width = torch.rand(shape, generator=generator) + 0.1
        if feature.type is not FeatureType.VISUAL:
            width[0], width[1] = 0, 1e-6
        made[key] = {"mean": low, "std": width, "min": low, "max": low + width}
        for low_name, high_name in (("q01", "q99"), ("q10", "q90")):
            made[key] |= {low_name: low, high_name: low + width}
        made[key]["count"] = torch.tensor([7])
    return made


def observe(inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(feature.shape, generator=generator)
        if feature.type is FeatureType.VISUAL
        else torch.randn(feature.shape, generator=generator)
        for key, feature in inputs.items()
    }


def write(out):
    for number, (name, spec) in enumerate(CASES.items()):
        torch.manual_seed(number)
        generator = torch.Generator().manual_seed(number)
        inputs, outputs = features(spec)
        extra = {
            key: spec[key]
            for key in ("pre_norm", "use_vae", "n_decoder_layers", "temporal_ensemble_coeff")
            if key in spec
        }
        config = ACTConfig(
            input_features=inputs,
            output_features=outputs,
            normalization_mapping={
                kind: NormalizationMode(mode) for kind, mode in MODES[spec["modes"]].items()
            },
            chunk_size=6,
            n_action_steps=1 if "temporal_ensemble_coeff" in spec else 6,
            dim_model=32,
            n_heads=4,
            dim_feedforward=48,
            n_encoder_layers=2,
            latent_dim=8,
            n_vae_encoder_layers=1,
            pretrained_backbone_weights=None,
            device="cpu",
            push_to_hub=False,
            **extra,
        )
        policy = ACTPolicy(config).to(spec.get("dtype", torch.float32)).eval()
        with torch.no_grad():
            for parameter in policy.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.05 * noise.to(parameter.dtype))
        before, after = make_pre_post_processors(
            config, dataset_stats=statistics(inputs, outputs, generator)
        )
        folder = out / name
        policy.save_pretrained(folder)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        raw = observe(inputs, seed=100)
        normalized = before(dict(raw))
        saved = {f"raw.{key}": value for key, value in raw.items()}
        saved |= {f"normalized.{key}": normalized[key].clone() for key in raw}
        chunk = torch.randn(1, 5, generator=generator)
        saved |= {"actions.normalized": chunk, "actions.raw": after(chunk.clone()).clone()}
        save_file(saved, out / f"{name}.safetensors")


def act(folder):
    """Configuration, weights and four actions by LeRobot alone: its strict load, its processors."""
    policy = ACTPolicy.from_pretrained(folder, strict=True)
    before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
    actions = []
    if next(policy.parameters()).dtype is torch.float32:
        for seed in range(4):
            batch = before(observe(policy.config.input_features, seed))
            actions.append(after(policy.select_action(batch)))
    config = {key: value for key, value in vars(policy.config).items() if key != "pretrained_path"}
    return config, policy.state_dict(), actions


def difference(first, second):
    config_a, weights_a, actions_a = act(first)
    config_b, weights_b, actions_b = act(second)
    if config_a != config_b:
        return f"configurations {config_a} and {config_b}"
    for name, weight in weights_a.items():
        if not torch.equal(weight, weights_b[name]):
            return f"weight {name}"
    for number, (a, b) in enumerate(zip(actions_a, actions_b, strict=True)):
        if not torch.equal(a, b):
            return f"action {number}: {(a - b).abs().max()}"
    return "equal"


def compare(*folders):
    torch.set_num_threads(1)
    for first, second in zip(folders[::2], folders[1::2], strict=True):
        sys.stdout.write(f"{second.name}: {difference(first, second)}\n")


def migrate(old, new):
    """LeRobot's own conversion of a checkpoint from before 0.4."""
    from huggingface_hub import ModelCard
    from lerobot.processor import migrate_policy_normalization

    # The last thing it does is to let the hub check the model card.
    ModelCard.validate = lambda card, *arguments, **options: None
    sys.argv = ["migrate", "--pretrained-path", str(old), "--output-dir", str(new)]
    migrate_policy_normalization.main()


if __name__ == "__main__":
    command, *places = sys.argv[1:]
    {"write": write, "compare": compare, "migrate": migrate}[command](*map(Path, places))
