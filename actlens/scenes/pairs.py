"""Clean/corrupt pairs of recorded scenes: as alike as the recordings allow, but for one thing."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.scene import Scene, ScenePair
from actlens.scenes.dataset import Dataset, following_actions

_AXES = ("x", "y", "z")


def pair_from_addresses(dataset: Dataset, clean: str, corrupt: str, *, chunk: int) -> ScenePair:
    """The pair of two scenes that the caller names as `EPISODE:FRAME`, without unrelated donors.

    Raises:
        SceneError: if an address is malformed or names no frame.
    """
    addresses = parse_address(clean), parse_address(corrupt)
    first, second = (dataset.scene(*address, chunk=chunk) for address in addresses)
    same = "" if first.frame != second.frame else f", both at frame {first.frame}"
    return ScenePair(first, second, f"everything between {clean} and {corrupt}{same}")


def parse_address(address: str) -> tuple[int, int]:
    """Episode and frame of `EPISODE:FRAME`.

    Raises:
        SceneError: if the text has another form.
    """
    episode, colon, frame = address.partition(":")
    if not (colon and episode.isdecimal() and frame.isdecimal() and address.isascii()):
        raise SceneError(f"A scene's address is EPISODE:FRAME, such as 3:40, got {address!r}.")
    return int(episode), int(frame)


def nearest_pairs(
    dataset: Dataset,
    *,
    chunk: int,
    differ_in: str | None = "cube",
    frame: int = 0,
    n_pairs: int = 10,
    max_state_distance: float = 0.25,
    max_label_distance: float = math.inf,
) -> tuple[ScenePair, ...]:
    """Up to `n_pairs` at one frame index of different episodes: near in state, far in `differ_in`.

    `differ_in` is a label (`cube_yaw`) or a family of labels: `cube` means `cube_x`, `cube_y` and
    `cube_z` where there are such, else every label `cube_…`, and distance in it is Euclidean. State
    distance is the root mean square over joints, each in units of its standard deviation over the
    dataset; `max_label_distance` bounds the distance in all other labels in the same way. Among the
    pairs within these bounds the farthest come first, those below a tenth of the farthest are left
    out, and no episode is taken again while two others make a pair.

    Each pair gets unrelated donors from other episodes: those within a tenth of the pair's distance
    of the same value (or the nearest there is), and of these the farthest in state, at any frame.

    With `differ_in=None`, or where the dataset has no labels, nothing is known of the world. Then
    far means that the demonstrated actions that follow differ (root mean square in standard
    deviations), and the donors are the scenes of the same frame index that are farthest in state.

    Misleads: recordings are not a controlled experiment. Lighting, shadows and everything else that
    changed between two episodes differs too, and donors of unlabelled data may share what matters.
    `actlens.scenes.alignment.alignment_frame` says how far the scenes of each pair are apart in all
    that is known; pairs from a simulator differ in one thing alone.

    Raises:
        SceneError: if no label is called `differ_in`, fewer than two episodes have such a frame, no
            pair is asked for, or none is near enough in state.
    """
    if n_pairs < 1:
        raise SceneError(f"Ask for at least one pair, not {n_pairs}.")
    family = label_family(dataset, differ_in)
    if math.isfinite(max_label_distance) and not family:
        raise SceneError(
            f"max_label_distance bounds the labels other than differ_in ({differ_in}); "
            f"{dataset.name} has the labels {', '.join(dataset.label_names) or 'none'}."
        )
    having = sum(0 <= frame < episode.length for episode in dataset.episodes)
    if having < 2:
        raise SceneError(
            f"A pair takes two episodes; {having or 'none'} of {dataset.name}'s "
            f"{len(dataset.episodes)} has a frame {frame}."
        )
    table = _Table.of(dataset, family, frame=frame, chunk=chunk)
    rows = np.flatnonzero(table.frame == frame)
    chosen = _chosen_pairs(table, rows, n_pairs, max_state_distance, max_label_distance)
    if not chosen:
        also = ""
        if family and math.isfinite(max_label_distance):
            also = f" and their other labels within {max_label_distance}"
        raise SceneError(
            f"{dataset.name} has no two episodes that differ at frame {frame} while their states "
            f"lie within {max_state_distance} standard deviations{also}: raise max_state_distance"
            f"{' or max_label_distance' * bool(also)}, or take frame 0."
        )
    what = "what two recordings show while their states agree"
    if family:
        what = f"{differ_in}, and whatever else differs between two recordings"
    scenes: dict[int, Scene] = {}
    pairs: list[ScenePair] = []
    for a, b in chosen:
        donors = [_donor(table, *rows, labelled=bool(family)) for rows in ((a, b), (b, a))]
        for row in (a, b, *donors):
            if row is not None and row not in scenes:
                address = int(table.episode[row]), int(table.frame[row])
                scenes[row] = dataset.scene(*address, chunk=chunk)
        of_clean, of_corrupt = (None if row is None else scenes[row] for row in donors)
        pairs.append(ScenePair(scenes[a], scenes[b], what, of_clean, of_corrupt))
    return tuple(pairs)


def label_family(dataset: Dataset, differ_in: str | None) -> tuple[str, ...]:
    """The labels whose distance counts; none where there is nothing to choose from.

    Raises:
        SceneError: if the dataset has labels, but none that `differ_in` names.
    """
    if differ_in is None or not dataset.label_names:
        return ()
    family = [name for name in dataset.label_names if name.startswith(f"{differ_in}_")]
    # Metres and radians do not add up: where there is a position, the family means the position.
    position = [name for name in family if name.removeprefix(f"{differ_in}_") in _AXES]
    exact = [name for name in dataset.label_names if name == differ_in]
    chosen = exact or position or family
    if not chosen:
        raise SceneError(
            f"{dataset.name} has no label {differ_in!r}; it has {', '.join(dataset.label_names)}."
        )
    return tuple(chosen)


@dataclass(frozen=True)
class _Table:
    """Every candidate scene as numbers: one row a scene."""

    episode: np.ndarray
    frame: np.ndarray
    state: Float[np.ndarray, "row joint"]
    """In standard deviations over the dataset."""
    value: Float[np.ndarray, "row _"]
    """What pairs should differ in: the labels, or the demonstrated actions that follow."""
    other: Float[np.ndarray, "row _"]
    """All other labels, in standard deviations over the dataset."""

    @classmethod
    def of(cls, dataset: Dataset, family: Sequence[str], *, frame: int, chunk: int) -> "_Table":
        """All frames of a labelled dataset; of an unlabelled one the frames of that index."""
        tracks = {e.index: dataset.track(e.index) for e in dataset.episodes}
        states = {
            i: track.observations.get(STATE_KEY, np.zeros((len(track.action), 0), np.float32))
            for i, track in tracks.items()
        }
        state_scale = _spread(np.concatenate(list(states.values())))
        action_scale = _spread(np.concatenate([track.action for track in tracks.values()]))
        rest = [name for name in dataset.label_names if family and name not in family]
        others = {
            i: np.stack([track.labels[name] for name in rest], axis=1)
            if rest
            else np.zeros((len(track.action), 0))
            for i, track in tracks.items()
        }
        other_scale = _spread(np.concatenate(list(others.values())))
        parts: list[tuple[np.ndarray, ...]] = []
        for i, track in tracks.items():
            length = len(track.action)
            frames = np.arange(length) if family else np.arange(frame, min(frame + 1, length))
            if family:
                value = np.stack([track.labels[name] for name in family], axis=1)
            elif len(frames):
                actions, _ = following_actions(track, frame, chunk)
                value = (actions / action_scale).reshape(1, -1) / math.sqrt(actions.size)
            else:
                continue
            state, other = states[i][frames] / state_scale, others[i][frames] / other_scale
            parts.append((np.full(len(frames), i), frames, state, value, other))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def state_distance(self, row: int, others: np.ndarray) -> Float[np.ndarray, " other"]:
        """Root mean square difference over joints, in standard deviations."""
        return _root_mean_square(self.state[others] - self.state[row])

    def other_distance(self, row: int, others: np.ndarray) -> Float[np.ndarray, " other"]:
        """Root mean square difference over all other labels, in standard deviations."""
        return _root_mean_square(self.other[others] - self.other[row])

    def distance(self, row: int, others: np.ndarray) -> Float[np.ndarray, " other"]:
        """Euclidean distance in what pairs should differ in."""
        return np.sqrt(((self.value[others] - self.value[row]) ** 2).sum(1))


def _root_mean_square(difference: Float[np.ndarray, "row _"]) -> Float[np.ndarray, " row"]:
    """Over columns; zero where there are none."""
    return np.sqrt((difference**2).sum(1) / max(1, difference.shape[1]))


def _spread(values: Float[np.ndarray, "row joint"]) -> Float[np.ndarray, " joint"]:
    """Standard deviation of every joint; 1 where it does not move, so that it can divide."""
    spread = values.std(axis=0)
    return np.where(spread > 1e-6, spread, 1.0)


def _chosen_pairs(
    table: _Table,
    rows: np.ndarray,
    n_pairs: int,
    max_state_distance: float,
    max_label_distance: float,
) -> list[tuple[int, int]]:
    """Pairs of rows, farthest first, each episode as rarely as can be."""
    candidates: list[tuple[float, int, int]] = []
    for position, a in enumerate(rows.tolist()):
        others = rows[position + 1 :]
        alike = table.other_distance(a, others) <= max_label_distance
        near = others[alike & (table.state_distance(a, others) <= max_state_distance)]
        distances = table.distance(a, near).tolist()
        candidates += [(d, a, b) for d, b in zip(distances, near.tolist(), strict=True)]
    # A pair that hardly differs would divide an effect by almost nothing.
    least = 0.1 * max((distance for distance, _, _ in candidates), default=0.0)
    left = sorted((-d, a, b) for d, a, b in candidates if d > least)
    chosen: list[tuple[int, int]] = []
    allowed = 0
    while left and len(chosen) < n_pairs:
        allowed += 1
        uses = Counter(itertools.chain.from_iterable(chosen))
        skipped: list[tuple[float, int, int]] = []
        for candidate in left:
            _, a, b = candidate
            if len(chosen) < n_pairs and max(uses[a], uses[b]) < allowed:
                chosen.append((a, b))
                uses.update((a, b))
            else:
                skipped.append(candidate)
        left = skipped
    return chosen


def _donor(table: _Table, row: int, partner: int, *, labelled: bool) -> int | None:
    """The scene of another episode that agrees with `row` in the value and in nothing else."""
    episodes = (table.episode[row], table.episode[partner])
    others = np.flatnonzero(~np.isin(table.episode, episodes))
    if not len(others):
        return None
    if labelled:
        distance = table.distance(row, others)
        tolerance = max(0.1 * table.distance(row, np.array([partner]))[0], distance.min())
        others = others[distance <= tolerance]
    return int(others[table.state_distance(row, others).argmax()])
