"""The edited policy as a checkpoint that LeRobot runs, with a model card that tells of the edit."""

from collections.abc import Sequence
from pathlib import Path

from actlens.model.act import HookedACT
from actlens.rome.record import RequestRecord
from actlens.rome.weight_edit import WeightEdit, apply_edits
from actlens.text import clean_text

_CARD = "README.md"


def export_policy(
    model: HookedACT, edits: Sequence[WeightEdit], folder: str | Path, *, overwrite: bool = False
) -> Path:
    """Write the policy with the edits in its weights as a LeRobot folder; the model stays as it is.

    Matrices that were stored in 16 bits are stored in 32 where they were edited.

    Args:
        folder: a new or empty one, or one that actlens wrote before.
        overwrite: also into a folder that something else made.

    Raises:
        EditError: if an edit does not fit the policy.
        CheckpointError: if the model was not loaded from a checkpoint, or the folder cannot be
            written.
    """
    with apply_edits(model, *edits):
        written = model.save_pretrained(folder, overwrite=overwrite)
    (written / _CARD).write_text(model_card(model, edits), encoding="utf-8")
    return written


def model_card(model: HookedACT, edits: Sequence[WeightEdit]) -> str:
    """Markdown that says what was changed, what was asked for, and what is not known of it."""
    source = "" if model.checkpoint is None else clean_text(model.checkpoint.source)
    lines = [
        "---", "library_name: lerobot", "pipeline_tag: robotics", "tags:", "- robotics",
        "- lerobot", "- act", "- actlens", "- model-editing", "---", "",
        "# An ACT policy with edited weights", "",
        f"Weights of {f'`{source}`' if source else 'an ACT policy'} with "
        f"{_counted(len(edits), 'edit')} made by actlens (`actlens.rome`), after ROME (Meng et al. "
        "2022): no training step, but output weights of MLPs changed in closed form. Everything "
        "else is as it was.", "",
        "Loads in LeRobot 0.4 to 0.6: `ACTPolicy.from_pretrained(folder, strict=True)`.", "",
    ]  # fmt: skip
    for number, edit in enumerate(edits, 1):
        lines += _about(edit, number)
    lines += [
        "## Before it moves an arm", "",
        "An edit acts on every scene whose key resembles the edited ones, and nobody has told it "
        "which of those should be meant. Try it in simulation or at low speed, within reach of "
        "the emergency stop, and compare success elsewhere with the policy it was made from.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _about(edit: WeightEdit, number: int) -> list[str]:
    record = edit.record
    options = ", ".join(f"{clean_text(k)}: {clean_text(v)}" for k, v in record.options.items())
    lines = [
        f"## Edit {number}: `{edit.site.block}.mlp`", "",
        f"- rank {edit.rank}, {edit.relative_norm:.3g} of the matrix's norm ({edit.norm:.4g})",
        f"- kept to the statistics of {record.statistics.get('n_keys')} keys of "
        f"{clean_text(record.statistics.get('source'))}",
        f"- {options}",
        f"- policy before `{edit.weights_sha256}`, after `{edit.edited_sha256}`",
    ]  # fmt: skip
    if record.conflicts:
        lines.append(f"- {_counted(len(record.conflicts), 'pair')} of requests contradict another")
    lines += ["", "| scene | chunk positions | asked for | largest deviation left |",
              "|---|---|---|---|"]  # fmt: skip
    lines += [_row(request, record.joints) for request in record.requests]
    return [*lines, ""]


def _row(request: RequestRecord, joints: Sequence[str]) -> str:
    """A request as a table row: how far each joint is moved, as a mean over positions."""
    n = len(request.positions)
    moved = {
        joint: sum(t[i] - b[i] for t, b in zip(request.target, request.before, strict=True)) / n
        for i, joint in enumerate(joints)
    }
    largest = max(map(abs, moved.values()), default=0.0)
    named = {joint: by for joint, by in moved.items() if abs(by) > 1e-3 * largest}
    shown = ", ".join(f"{clean_text(joint)} {by:+.4g}" for joint, by in named.items())
    scene = clean_text(request.scene).replace("|", "/")
    span = f"{request.positions[0]} to {request.positions[-1]} ({n})"
    return f"| {scene} | {span} | {shown or 'no change'} | {request.left_over:.2g} |"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
