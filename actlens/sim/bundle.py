"""Put a trained and evaluated policy among the bundled ones, with a card made from the records.

`python -m actlens.sim.bundle --name NAME --stages RUN … --evaluation FILE` copies the last stage's
policy and writes its README from each stage's `train_config.json` and `training.jsonl`, and from
what `actlens.sim.evaluate --output FILE` measured. Only `--note` is typed by hand.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlens.checkpoints import load_checkpoint
from actlens.train import CONFIG_FILE, LOG_FILE, POLICY_FOLDER

POLICIES = Path(__file__).parents[1] / "bundled" / "policies"


@dataclass(frozen=True)
class BundleConfig:
    """What to bundle."""

    name: str
    stages: tuple[Path, ...]
    """The training runs' folders, first to last; the last one's policy is bundled."""
    evaluation: Path
    dataset: str
    """The bundled dataset that it was trained on."""
    note: str = ""
    """What a reader should know before repeating the training; figures with their command."""


def _command(config: dict[str, Any], dataset: str, warm_start: str | None) -> str:
    """The training command of one stage, with the options that differ from the defaults."""
    from dataclasses import fields

    from actlens.train import TrainConfig

    defaults = {f.name: f.default for f in fields(TrainConfig)}
    hidden = {"dataset", "output_dir", "init_from", "resume", "save_every", "log_every"}
    words = [f"--dataset {dataset}"]
    for key, value in config.items():
        if key in hidden or str(defaults.get(key)) == str(value):
            continue
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag} {value}")
    if warm_start:
        words.append(f"--init-from {warm_start}/{POLICY_FOLDER}")
    return " ".join(["python -m actlens.train", *words])


def card(config: BundleConfig) -> str:
    """The model card: data, commands, durations, figures."""
    checkpoint = load_checkpoint(config.stages[-1] / POLICY_FOLDER)
    shape = checkpoint.config
    evaluation = json.loads(config.evaluation.read_text())
    camera = shape.cameras[0]
    lines = [
        f"# {config.name}",
        "",
        "An ACT policy that lifts a cube with a simulated six-joint arm, trained by actlens' own",
        f"commands on the bundled dataset `{config.dataset}`. A LeRobot folder: LeRobot loads and",
        "runs it unchanged.",
        "",
        f"- {len(shape.cameras)} cameras, {camera.height}x{camera.width}, {shape.n_tokens} tokens",
        f"- {shape.backbone}, d_model {shape.d_model}, {shape.n_heads} heads, d_mlp {shape.d_mlp}, "
        f"{shape.activation}",
        f"- {shape.n_encoder_layers} encoder, {shape.n_decoder_layers} decoder layers; CVAE with "
        f"{shape.n_vae_encoder_layers} encoder layer",
        f"- chunk {shape.chunk}, of which {shape.n_action_steps} steps are carried out",
        "- matrices in 16 bits, vectors and frozen norms in 32",
        "",
        "## Training",
        "",
    ]
    warm_start = None
    for number, stage in enumerate(config.stages, 1):
        asked = json.loads((stage / CONFIG_FILE).read_text())
        rows = [json.loads(row) for row in (stage / LOG_FILE).read_text().splitlines()]
        last = rows[-1]
        lines += [
            f"{number}. `{_command(asked, config.dataset, warm_start)} "
            f"--output-dir stage{number}`: "
            f"{last['step']} steps in {last['seconds'] / 60:.0f} minutes on two shared CPU cores; "
            f"final L1 {last['l1']:.4f} (normalised), KL {last['kl']:.5f} nats; "
            f"seed {asked['seed']}.",
        ]
        warm_start = f"stage{number}"
    lines += ["", config.note] if config.note else []
    options = evaluation["config"]
    lines += [
        "",
        "## Closed loop",
        "",
        f"`python -m actlens.sim.evaluate --policy {config.name} --dataset {config.dataset} "
        f"--rollouts {options['rollouts']} --seed {options['seed']}`; success is the cube more "
        "than 4 cm up at the end, with Wilson's 95 % interval; the distance is measured from "
        "gripper to cube, horizontally, when the gripper closes.",
        "",
        "| cube | success | 95 % | gripper to cube, mm: quartiles |",
        "|---|---|---|---|",
    ]
    for row in evaluation["summary"]:
        lines.append(
            f"| {row['kind']} | {row['successes']}/{row['rollouts']} | {row['success_low']:.0%} to "
            f"{row['success_high']:.0%} | {row['tip_error_mm_q25']:.1f}, "
            f"{row['tip_error_mm_median']:.1f}, {row['tip_error_mm_q75']:.1f} |"
        )
    lines += [
        "",
        f"Weights SHA-256: `{checkpoint.sha256}`. Licence: Apache-2.0.",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Copy the policy and write its card."""
    import tyro
    from rich.console import Console

    config = tyro.cli(
        BundleConfig, prog="python -m actlens.sim.bundle", description=__doc__, args=argv
    )
    target = POLICIES / config.name
    text = card(config)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(config.stages[-1] / POLICY_FOLDER, target)
    (target / "README.md").write_text(text)
    (target / "evaluation.json").write_text(config.evaluation.read_text())
    Console().print(f"bundled as {target.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
