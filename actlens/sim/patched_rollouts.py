"""Activation patching in closed loop: the policy is shown one cube and patched to see another.

At every inference a part of the network gets the activation that it would have with the cube
elsewhere and all else as it is. If the part carries the cube's position, the gripper goes there.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actlens.interventions import Edit, FromScene, Intervention
from actlens.model.act import HookedACT
from actlens.patching import PatchingResult
from actlens.patching.parts import Unit
from actlens.sim.closed_loop import ClosedLoop, compare
from actlens.sim.comparison_video import film
from actlens.sim.conditions import Condition, Start, cube_elsewhere, cube_where_it_is
from actlens.sim.controlled import simulator_for
from actlens.sim.correction import Correction, correction
from actlens.sim.environment import PickCube
from actlens.sites import Site

_TWIN = FromScene("twin")


@dataclass(frozen=True, eq=False)
class PatchedRollouts:
    """What patching did to the robot, and how much of one patched inference the loop undid."""

    closed_loop: ClosedLoop
    """Patched at every inference of the rollout."""
    correction: Correction
    """Patched at the first inference alone."""


def strongest_sites(model: HookedACT, result: PatchingResult) -> dict[str, Site]:
    """What to patch in rollouts after a sweep, by name.

    All that the decoder reads, and each camera's part of it; then the sublayer, the head and the
    token that restored most of the action.
    """
    sites = {"encoder.hook_out, all tokens": Site("encoder.hook_out")}
    for camera in model.tokens.cameras:
        sites[f"encoder.hook_out[{camera}]"] = model.site(f"encoder.hook_out[{camera}]")
    restored = result.frame().denoise.to_numpy()
    for unit in (Unit.SUBLAYER, Unit.HEAD, Unit.TOKEN):
        of_unit = [i for i, part in enumerate(result.parts) if part.unit is unit]
        strongest = result.parts[of_unit[int(np.nanargmax(restored[of_unit]))]]
        site = strongest.site({})
        assert site is not None  # only groups of tokens depend on the scene
        sites[f"{strongest.hook}[{strongest.label}]" if strongest.label else strongest.hook] = site
    return sites


def patch_rollouts(
    model: HookedACT,
    sites: Mapping[str, Site],
    starts: Sequence[Start],
    *,
    steps: int = 90,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PatchedRollouts:
    """Patch each site from the twin with the cube elsewhere, in rollouts from every start.

    A control patches all sites at once from a twin whose cube was not moved: nothing may change.

    Args:
        sites: by the names of their conditions.
        starts: each with the twin's cube position (`draw_starts`).
        steps: control steps of a rollout, 40 ms each.
        seed: of the bootstrap.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        SceneError: if the simulator does not fit the policy.
        InterventionError: if there is no start, or one without a twin.
    """
    each = 2 * (len(sites) + 3)  # undisturbed, repeated and the control are rolled out as well
    total = each * len(starts)
    with closing(simulator_for(model)) as env, closing(simulator_for(model, render=False)) as twin:
        everything = Intervention(tuple(Edit(site, _TWIN) for site in sites.values()))
        conditions = [Condition("control: cube not moved", everything, cube_where_it_is(twin))]
        conditions += [twin_patch(name, site, twin) for name, site in sites.items()]
        whole = compare(
            model, env, starts, conditions, steps=steps, seed=seed,
            progress=lambda done, _: progress(done, total),
        )  # fmt: skip
        once = correction(
            model, env, starts, conditions, seed=seed,
            progress=lambda done, _: progress(total // 2 + done, total),
        )  # fmt: skip
    return PatchedRollouts(whole, once)


def twin_patch(name: str, site: Site, simulator: PickCube) -> Condition:
    """At every inference, the site as it would be with the cube elsewhere."""
    return Condition(name, Intervention.at(site, _TWIN), cube_elsewhere(simulator))


def film_patch(
    path: Path, model: HookedACT, name: str, site: Site, start: Start, *, steps: int = 90
) -> None:
    """Writes a film of one start: left as it is, right with the site patched at every inference.

    Raises:
        SceneError: if the simulator does not fit the policy.
        RenderingError: if no OpenGL library starts on this machine.
    """
    with closing(simulator_for(model)) as env, closing(simulator_for(model, render=False)) as twin:
        film(path, model, env, start, twin_patch(name, site, twin), steps=steps)
