"""From scenes to what each site holds of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actlens.errors import ConfigError
from actlens.model.act import HookedACT
from actlens.reconstruction.claims import claims_of, parts_of
from actlens.reconstruction.material import Material, Moment, read_moment
from actlens.reconstruction.options import ReconstructionOptions
from actlens.reconstruction.reading import judge_of, read_all
from actlens.reconstruction.result import MomentRead, Reconstruction


@dataclass(frozen=True)
class Watch:
    """Told of progress."""

    scene: Callable[[int], None] = lambda n_scenes: None
    """How many scenes were run; every scene is run by two policies."""
    reading: Callable[[int], None] = lambda n_readings: None
    """How many readings were made."""


_DEFAULT, _SILENT = ReconstructionOptions(), Watch()


def reconstruct(
    model: HookedACT,
    fresh: HookedACT,
    moments: Sequence[Moment],
    options: ReconstructionOptions = _DEFAULT,
    *,
    watch: Watch = _SILENT,
) -> Reconstruction:
    """Decode the scenes of some moments from every site of a policy.

    Args:
        fresh: a policy of the same shape with random weights.
        moments: frame 0 first: the claim is judged there.

    Raises:
        ConfigError: if there is no moment, or no such chunk position.
        SceneError: if there are too few demonstrations.
    """
    if not moments:
        raise ConfigError("There is no moment to reconstruct.")
    if options.query >= model.config.chunk:
        raise ConfigError(
            f"There is no chunk position {options.query}: they are 0 to {model.config.chunk - 1}."
        )
    found, claims = [], ()
    for moment in moments:
        material = read_moment(model, fresh, moment, options, progress=watch.scene)
        cameras = tuple(camera.name for camera in model.config.cameras)
        found.append(decode(material, options, cameras, progress=watch.reading))
        if len(found) == 1:
            claims = claims_of(found[0], parts_of(material.quantities), seed=options.seed)
    return Reconstruction(tuple(found), claims, options.seed)


def decode(
    material: Material,
    options: ReconstructionOptions,
    cameras: Sequence[str],
    *,
    progress: Callable[[int], None] = lambda n_readings: None,
) -> MomentRead:
    """Every reading of a moment's scenes.

    Args:
        cameras: names, in the order of the material's pictures.
        progress: told of every reading.
    """
    judge = judge_of(material)
    return MomentRead(
        material.moment,
        tuple(read_all(material, options, progress=progress)),
        material.sets,
        material.episodes,
        material.addresses,
        {one.name: one.unit for one in material.quantities},
        tuple(cameras),
        None if judge is None else judge.n_changed,
    )
