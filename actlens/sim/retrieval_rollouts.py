"""All rollouts of the question whether retrieval, or a surrogate, suffices while the arm acts.

rolled = retrieval_rollouts(model, demonstrations, folder, n=20)
SubstitutedRollouts(tuple(one for one in rolled if one.number < 20)).summary()
plain = [one for one in rolled if one.condition == UNDISTURBED.name]
monitor_table(scores(plain, demonstrations, executed_positions(model.config), every), plain)
"""

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from actlens.errors import InterventionError
from actlens.model.act import HookedACT
from actlens.retrieval import Demonstrations
from actlens.shards import Progress
from actlens.sim.conditions import UNDISTURBED, draw_starts
from actlens.sim.controlled import roll_out, simulator_for
from actlens.sim.environment import PickCube
from actlens.sim.kept_rollouts import (
    KeptRollout,
    Place,
    complete_rollouts,
    identity,
    kept,
    require_same_run,
)
from actlens.sim.regions import Region
from actlens.sim.substituted_rollouts import substitutions
from actlens.sim.watching import watched_rollout, watched_sites

REGIONS = (Region.TRAIN, Region.HELD_OUT, Region.STRIP)
"""New places in demonstrated cells, cells left out between them, and beyond all of them."""


def retrieval_rollouts(
    model: HookedACT,
    demonstrations: Demonstrations,
    folder: Path,
    *,
    n: int,
    watched: int | None = None,
    steps: int = 90,
    seed: int = 0,
    env: PickCube | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[KeptRollout, ...]:
    """Roll out every start undisturbed and watched, and the first `n` under every substitution.

    Called again for the same folder it goes on where it was interrupted.

    Args:
        demonstrations: run by this policy at `watched_sites(model)`, with labels of the cube.
        n: starts of every region.
        watched: undisturbed ones of every region; n if not given.
        steps: control steps of a rollout, 40 ms each.
        seed: of the starts.
        env: the simulator; made for the policy if not given.

    Raises:
        InterventionError: if there is no start, or fewer are watched than rolled out.
        SceneError: if the simulator does not fit the policy.
        RetrievalError: if labels or keys are missing.
        RunError: if the folder holds rollouts of something else.
    """
    watched = n_watched(n, watched)
    if env is None:
        with closing(simulator_for(model)) as own:
            return retrieval_rollouts(
                model, demonstrations, folder,
                n=n, watched=watched, steps=steps, seed=seed, env=own, progress=progress,
            )  # fmt: skip
    simulator = env
    asked = identity(model, demonstrations=_hash(demonstrations), steps=steps)
    require_same_run(folder, asked)  # fitting takes minutes: a wrong folder is told of before
    made = substitutions(model, demonstrations, simulator) if n else ()
    by_name = {condition.name: condition for condition in made}
    starts = {
        region: draw_starts(watched, region=region, seed=len(REGIONS) * seed + i)
        for i, region in enumerate(REGIONS)
    }
    wanted = [
        (Place(region, number, starts[region][number]), name)
        for number in range(watched)
        for region in REGIONS
        for name in (UNDISTURBED.name, *(by_name if number < n else ()))
    ]
    sites = watched_sites(model)

    def roll(place: Place, name: str) -> KeptRollout:
        if name == UNDISTURBED.name:
            result, keys = watched_rollout(model, simulator, place.start, sites, steps=steps)
            return kept(place, name, result, keys=keys)
        episode = roll_out(model, simulator, place.start, by_name[name], steps=steps)
        return kept(place, name, episode.result, changed=episode.changed)

    return complete_rollouts(folder, asked, wanted, roll, progress=progress)


def n_watched(n: int, watched: int | None) -> int:
    """How many starts of a region are watched, if `n` are rolled out with substitutions.

    Raises:
        InterventionError: if there is none, or fewer than n.
    """
    watched = n if watched is None else watched
    if not max(n, 1) <= watched:
        raise InterventionError(
            f"{watched} starts of a region are watched and {n} rolled out with substitutions: "
            "watch at least one, and all of these."
        )
    return watched


def _hash(demonstrations: Demonstrations) -> str:
    digest = hashlib.sha256()
    for values in (demonstrations.actions, demonstrations.episodes, demonstrations.frames):
        digest.update(values.tobytes())
    return digest.hexdigest()
