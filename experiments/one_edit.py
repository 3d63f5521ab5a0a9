"""One edit from the command line, kept as a file and exported as a policy."""

import dataclasses
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from actlens.allocator import keep_freed_memory
from actlens.matmul import fastest_float32_matmul
from actlens.provenance import provenance, write_json
from actlens.report.one_edit import render_edit
from actlens.rome.export import export_policy
from actlens.rome.files import save_edit
from actlens.rome.jitter import NO_JITTER
from actlens.rome.prepared import prepare
from actlens.rome.request import Offset, Request
from actlens.rome.situations import places_of
from actlens.rome.study import Study
from experiments.command import with_page, write_report
from experiments.rome_options import Asked, Config, address, block_of, progress
from experiments.scene_choice import describe, open_demonstrations


def edit_one(config: Config, folder: Path, console: Console) -> None:
    """Make one edit, say what it does elsewhere, and export the policy.

    Raises:
        SceneError: if the scene does not exist.
        EditError: if the request makes no sense for the policy.
    """
    assert config.scene is not None
    began = time.monotonic()
    keep_freed_memory()
    model = config.policy.files.load()
    dataset, block, asked = (
        open_demonstrations(config.dataset, config.policy.path),
        block_of(config, model),
        Asked.by(config, model),
    )
    episode, frame = address(config.scene)
    scene = dataset.scene(episode, frame, chunk=model.config.chunk)
    episodes = [one.index for one in dataset.episodes]
    places = places_of(dataset, config.place)
    with (
        progress(console, "key statistics", 10 * len(episodes)) as tell,
        fastest_float32_matmul(),
    ):
        study = Study.of(model, dataset, block, episodes, places=places, progress=tell)
    request = Request(scene, Offset({asked.joint: asked.offset}))
    prepared = prepare(model, [request], block, jitter=NO_JITTER, limits=study.limits)
    edit = study.scoped().edit(prepared, [places.of(scene)])
    files = [save_edit(edit, folder)]
    if config.export is not None:
        files.append(export_policy(model, [edit], config.export))
    facts = {"dataset": dataset.name, "block": block, "asked": dataclasses.asdict(asked)}
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    write_json(folder / "provenance.json", origin)
    spill = edit.spill(study.statistics.sample)
    files = with_page(folder, files)
    report = render_edit(edit, spill, policy=describe(model, config.policy.path), files=files)
    write_report(report, files, origin=origin)
    if config.json:
        content = {"edit": edit.record.to_json(), "relative_norm": edit.relative_norm}
        sys.stdout.write(json.dumps(content | {"files": list(map(str, files))}) + "\n")
        return
    Console().print(report)
