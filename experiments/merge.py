"""The report of a patching run whose pairs were computed elsewhere, or in several parts.

    python -m experiments.merge runs/sweep
    python -m experiments.merge shard-1 shard-2 shard-3 --output-dir runs/sweep

Reads what `python -m experiments.patching` has stored in the folders (with `--shard`, or without)
and writes the same files, the same to the bit. Nothing is computed: pairs that are missing are
named.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from actlens.patching.identity import code_version
from actlens.provenance import provenance
from actlens.shards import Run, RunError, from_tree, open_run
from experiments import patching, patching_output
from experiments.scene_choice import load, source_of


@dataclass(frozen=True)
class Merge:
    """Options of the merge."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The run's folders."""
    policy: str | None = None
    """Where the policy is, if not where it was for the run."""
    dataset: Path | None = None
    """Where the dataset is, if not where it was; only its pictures are looked at."""
    output_dir: Path | None = None
    """Where files go; the first folder if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


def asked(run: Run, options: Merge) -> patching.Config:
    """The options of the run, with what the merge says otherwise.

    Raises:
        RunError: if the folder says no options, or another version of actlens computed it.
    """
    ours, theirs = code_version(), run.plan.asked.get("code", {})
    if any(ours[name] != theirs.get(name) for name in ("actlens", "source")):
        raise RunError(
            f"{run.folder} was computed by another version of actlens ({theirs.get('actlens')}, "
            f"source {str(theirs.get('source'))[:8]}; here {ours['actlens']}, source "
            f"{ours['source'][:8]}): merge with that one."
        )
    try:
        config = from_tree(patching.Config, run.about["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run.folder} is no run of experiments.patching ({error}).") from error
    if options.policy is not None:
        policy = dataclasses.replace(config.policy, path=options.policy)
        config = dataclasses.replace(config, policy=policy)
    if options.dataset is not None:
        data = dataclasses.replace(config.dataset, root=options.dataset)
        config = dataclasses.replace(config, dataset=data)
    return dataclasses.replace(config, json=options.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, write, show."""
    options = tyro.cli(Merge, prog="python -m experiments.merge", description=__doc__, args=argv)
    console = Console(stderr=True)

    def work() -> None:
        began = time.monotonic()
        if not options.folders:
            raise RunError("Give the folders of a run: python -m experiments.merge runs/sweep")
        runs = [open_run(folder) for folder in options.folders]
        config = asked(runs[0], options)
        model = load(config)
        result, facts = patching.gather(runs, model, source_of(config, model))
        seconds = time.monotonic() - began
        origin = provenance(model, config, seconds=seconds, facts=facts)
        folder = options.output_dir or options.folders[0]
        patching_output.show(result, model, origin, config, folder)

    return patching.guarded(work, console, lambda: "interrupted")


if __name__ == "__main__":
    sys.exit(main())
