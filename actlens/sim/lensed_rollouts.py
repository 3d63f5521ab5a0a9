"""Rollouts in which the arm does what a lens shows: what an unfinished network can do."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from actlens.lens import (
    Lens,
    Sublayer,
    Translator,
    Tuned,
    Variant,
    encoder_lens,
    lens_hooks,
    stream_lens,
)
from actlens.lens.places import Part
from actlens.model.act import HookedACT
from actlens.shards import Progress
from actlens.sim.conditions import UNDISTURBED, Condition, draw_starts
from actlens.sim.controlled import roll_out, simulator_for
from actlens.sim.environment import PickCube
from actlens.sim.kept_rollouts import KeptRollout, Place, complete_rollouts, identity, kept
from actlens.sim.retrieval_rollouts import REGIONS
from actlens.sim.substituted_rollouts import SubstitutedRollouts


def acting_lenses(model: HookedACT, tuned: Tuned) -> tuple[Lens, ...]:
    """Those that see the scene and are not the policy: raw, tuned, and the last one's control."""
    config = model.config
    last = config.n_decoder_layers - 1
    raw = [encoder_lens(model, layer) for layer in range(config.n_encoder_layers)]
    raw.append(stream_lens(model, last, Sublayer.CROSS))
    places = {lens.place for lens in raw}
    maps = [one for one in tuned.lenses(model) if one.place in places]
    fitted = [one for one in maps if one.variant is Variant.TUNED]
    control = [
        one for one in maps if one.variant is Variant.SHUFFLED and one.place.part is Part.DECODER
    ]
    return (*raw, *fitted, *control)


def lens_condition(lens: Lens) -> Condition:
    """The policy acts on what the lens shows, at every inference."""
    hooks = lambda model, start: model.hooks(fwd_hooks=lens_hooks(model, lens))
    return Condition(lens.name, within=hooks)


def lensed_rollouts(
    model: HookedACT,
    lenses: Sequence[Lens],
    folder: Path,
    *,
    n: int,
    steps: int = 90,
    seed: int = 0,
    env: PickCube | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> SubstitutedRollouts:
    """Roll out the policy, and every lens in its place, from the same starts.

    Called again for the same folder it goes on where it was interrupted.

    Args:
        n: starts in every region: new places in demonstrated cells, held-out cells, the strip.
        steps: control steps of a rollout, 40 ms each.
        seed: of the starts and bootstraps.
        env: the simulator; made for the policy if not given.

    Raises:
        InterventionError: if there is no start, or two lenses share a name.
        SceneError: if the simulator does not fit the policy.
        RunError: if the folder holds rollouts of something else.
    """
    if env is None:
        with closing(simulator_for(model)) as own:
            return lensed_rollouts(
                model, lenses, folder, n=n, steps=steps, seed=seed, env=own, progress=progress
            )
    simulator = env
    conditions = {lens.name: lens_condition(lens) for lens in lenses}
    names = [UNDISTURBED.name, *(lens.name for lens in lenses)]
    wanted = [
        (Place(region, number, start), name)
        for i, region in enumerate(REGIONS)
        for number, start in enumerate(draw_starts(n, region=region, seed=len(REGIONS) * seed + i))
        for name in names
    ]

    def roll(place: Place, name: str) -> KeptRollout:
        condition = conditions.get(name, UNDISTURBED)
        episode = roll_out(model, simulator, place.start, condition, steps=steps)
        return kept(place, name, episode.result)

    asked = identity(model, steps=steps, lenses=_hash(lenses))
    found = complete_rollouts(folder, asked, wanted, roll, progress=progress)
    return SubstitutedRollouts(found, seed)


def _hash(lenses: Sequence[Lens]) -> str:
    """Of what was fitted; the rest of a lens is in its name and in the code."""
    digest = hashlib.sha256()
    for lens in lenses:
        digest.update(lens.name.encode())
        through = None if lens.moved is None else lens.moved.through
        if isinstance(through, Translator):
            for values in (through.weight, through.bias):
                digest.update(values.numpy(force=True).tobytes())
    return digest.hexdigest()
