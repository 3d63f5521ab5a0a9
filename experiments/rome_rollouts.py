"""The closed loop behind an evaluation of edits: what they do to the robot."""

from pathlib import Path

from rich.console import Console, RenderableType

from actlens.report.edited_rollouts import render_edited_rollouts
from actlens.rome.jitter import NO_JITTER
from actlens.rome.prepared import prepare
from actlens.rome.request import Offset, Request
from actlens.rome.study import Study
from actlens.rome.weight_edit import WeightEdit
from actlens.scene import Scene
from experiments.rollouts import STEPS
from experiments.rome_options import Asked, Config, progress
from experiments.scene_choice import describe


def roll_out(config: Config, study: Study, folder: Path, console: Console) -> RenderableType:
    """Edits in closed loop, each made for what the simulator shows; tables and the report."""
    from actlens.sim.edit_cases import draw_cases
    from actlens.sim.edited_rollouts import ARM_LIMITS, edited_rollouts

    asked = Asked.by(config, study.model)
    offset, edits = Offset({asked.joint: asked.offset}), study.scoped()

    def edit_at(scene: Scene) -> WeightEdit:
        prepared = prepare(
            study.model, [Request(scene, offset)], study.statistics.site.block,
            jitter=NO_JITTER, limits=ARM_LIMITS,
        )  # fmt: skip
        return edits.edit(prepared, [study.places.of(scene)])

    with progress(console, "rollouts", 6 * config.rollout) as tell:
        last = 0

        def step(n: int, _total: int) -> None:
            nonlocal last
            tell(n - last)
            last = n

        cases = draw_cases(config.rollout, seed=config.seed)
        rolled = edited_rollouts(
            study.model, edit_at, cases, steps=STEPS, seed=config.seed, progress=step
        )
    path = folder / "rollouts.parquet"
    rolled.frame().to_parquet(path, index=False)
    return render_edited_rollouts(
        rolled.summary(),
        policy=describe(study.model, config.policy.path),
        asked=f"{asked.joint} {asked.offset:+g}",
        steps=STEPS,
        files=[path],
    )
