"""What two scenes of a pair share and what they differ in: reported, or refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.scene import Scene, ScenePair

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PictureDifference:
    """How far two pictures of one camera are apart."""

    share: float
    """Of the pixels that differ at all, in any channel. Recordings differ nearly everywhere."""
    mean: float
    """Mean absolute difference over pixels and channels, of 255."""


@dataclass(frozen=True)
class Alignment:
    """How well two scenes agree in what should not differ, and how far they are apart otherwise."""

    state: float
    """Largest difference of any joint between the two states, in dataset units."""
    frames: int
    """Difference of the two frame indices."""
    labels: Mapping[str, float]
    """Label -> difference (second minus first), for labels that both scenes have."""
    pictures: Mapping[str, PictureDifference]
    """By observation key."""
    action: float | None
    """Root mean square difference of the demonstrated actions, in dataset units; None where a
    scene has none, or they differ in length."""


@dataclass(frozen=True)
class Differs:
    """What the two scenes of a pair may and must differ in; all else is equal bit for bit."""

    inputs: frozenset[str] = frozenset()
    """Observation keys; at least one of them differs, or nothing would be seen of the change."""
    labels: frozenset[str] = frozenset()
    """Names of labels; at least one of them differs."""
    action: bool = False
    """Whether the demonstrated action differs."""


def alignment(first: Scene, second: Scene) -> Alignment:
    """The differences between two scenes that a pair should keep small, and those it needs.

    Raises:
        SceneError: if the scenes' states or pictures differ in shape.
    """
    _require_alike(first, second)
    apart = {
        key: _as_levels(second.observation[key]) - _as_levels(value)
        for key, value in first.observation.items()
        if value.ndim >= 3
    }
    state = first.observation.get(STATE_KEY)
    return Alignment(
        0.0 if state is None else (state - second.observation[STATE_KEY]).abs().max().item(),
        second.frame - first.frame,
        {k: second.labels[k] - first.labels[k] for k in first.labels if k in second.labels},
        {
            key: PictureDifference(
                (difference != 0).any(-3).double().mean().item(), difference.abs().mean().item()
            )
            for key, difference in apart.items()
        },
        _action_distance(first.action, second.action),
    )


def misalignments(pair: ScenePair, differs: Differs) -> tuple[str, ...]:
    """Every way in which a pair is not what it declares; none for a pair that differs in one thing.

    The donors must differ in the declared thing as the pair does, agree with the scene whose donor
    they are in it, and differ from that scene in every input that is not declared.

    Raises:
        SceneError: if the scenes' observations differ in keys or shapes.
    """
    found = _not_one_thing(("clean", pair.clean), ("corrupt", pair.corrupt), differs)
    donors = (
        ("unrelated_clean", pair.unrelated_clean),
        ("unrelated_corrupt", pair.unrelated_corrupt),
    )
    if pair.unrelated_clean is not None and pair.unrelated_corrupt is not None:
        found += _not_one_thing(
            ("unrelated_clean", pair.unrelated_clean),
            ("unrelated_corrupt", pair.unrelated_corrupt),
            differs,
        )
    for scene, (name, donor) in zip((pair.clean, pair.corrupt), donors, strict=True):
        if donor is not None:
            found += _not_unrelated(scene, name, donor, differs)
    return tuple(found)


def check_pair(pair: ScenePair, differs: Differs) -> ScenePair:
    """The pair, if it differs in what it declares and in nothing else.

    Raises:
        SceneError: otherwise, with everything that is wrong.
    """
    if problems := misalignments(pair, differs):
        raise SceneError(
            f"Scenes {pair.clean.address} and {pair.corrupt.address} do not differ in "
            f"{pair.differs_in} alone: {'; '.join(problems)}."
        )
    return pair


def alignment_frame(pairs: Sequence[ScenePair]) -> "pd.DataFrame":
    """Every pair in numbers: one row for its two scenes and one for each scene and its donor.

    Columns: `pair`, `compared` (`pair`, `clean donor`, `corrupt donor`), the two addresses, `state`
    (largest difference of a joint), `frames`, `action` (root mean square), and for every label
    and picture `label NAME`, `share KEY` and `mean KEY`; see `Alignment`.
    """
    import pandas as pd

    rows = []
    for number, pair in enumerate(pairs):
        compared = {
            "pair": (pair.clean, pair.corrupt),
            "clean donor": (pair.clean, pair.unrelated_clean),
            "corrupt donor": (pair.corrupt, pair.unrelated_corrupt),
        }
        for name, (first, second) in compared.items():
            if second is None:
                continue
            apart = alignment(first, second)
            row = {"pair": number, "compared": name}
            row |= {"first": first.address, "second": second.address}
            row |= {"state": apart.state, "frames": apart.frames, "action": apart.action}
            row |= {f"label {label}": value for label, value in apart.labels.items()}
            for key, picture in apart.pictures.items():
                row |= {f"share {key}": picture.share, f"mean {key}": picture.mean}
            rows.append(row)
    return pd.DataFrame(rows)


def _require_alike(first: Scene, second: Scene) -> None:
    shapes = [{k: tuple(v.shape) for k, v in s.observation.items()} for s in (first, second)]
    if shapes[0].get(STATE_KEY) != shapes[1].get(STATE_KEY):
        raise SceneError(f"{first.address} and {second.address} have different kinds of state.")
    if shapes[0] != shapes[1]:
        raise SceneError(
            f"{first.address} and {second.address} cannot be compared: one holds {shapes[0]}, the "
            f"other {shapes[1]}."
        )


def _action_distance(first: Tensor | None, second: Tensor | None) -> float | None:
    if first is None or second is None or first.shape != second.shape:
        return None
    return (second - first).square().mean().sqrt().item()


def _as_levels(picture: Tensor) -> Tensor:
    return picture.double() if picture.dtype == torch.uint8 else picture.double() * 255


def _changed(first: Scene, second: Scene) -> tuple[set[str], set[str], bool]:
    """Observation keys, labels, and whether the actions differ, in any bit."""
    inputs = {
        key
        for key, value in first.observation.items()
        if value.dtype != second.observation[key].dtype
        or not torch.equal(value, second.observation[key])
    }
    names = first.labels.keys() | second.labels.keys()
    labels = {name for name in names if first.labels.get(name) != second.labels.get(name)}
    a, b = first.action, second.action
    same = a is b if a is None or b is None else a.shape == b.shape and torch.equal(a, b)
    return inputs, labels, not same


def _not_one_thing(
    first: tuple[str, Scene], second: tuple[str, Scene], differs: Differs
) -> list[str]:
    (name, one), (other_name, other) = first, second
    _require_alike(one, other)
    inputs, labels, action = _changed(one, other)
    between = f"between {name} and {other_name}"
    found = []
    if extra := sorted(inputs - differs.inputs) + sorted(labels - differs.labels):
        found.append(f"{', '.join(extra)} differ{'s' * (len(extra) == 1)} {between}")
    for declared, changed in ((differs.inputs, inputs), (differs.labels, labels)):
        if declared and not declared & changed:
            found.append(f"nothing of {', '.join(sorted(declared))} differs {between}")
    if action != differs.action:
        found.append(f"the actions are {'not ' * action}the same {between}")
    if one.frame != other.frame:
        found.append(f"the frame differs {between}")
    return found


def _not_unrelated(scene: Scene, name: str, donor: Scene, differs: Differs) -> list[str]:
    _require_alike(scene, donor)
    inputs, labels, _ = _changed(scene, donor)
    found = []
    shared = differs.labels | (differs.inputs & {STATE_KEY})
    if apart := sorted(shared & (labels | inputs)):
        found.append(f"{name} does not agree with its scene in {', '.join(apart)}")
    if same := sorted(scene.observation.keys() - differs.inputs - inputs):
        found.append(f"{name} agrees with its scene in {', '.join(same)}")
    return found
