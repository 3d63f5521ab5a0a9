"""What was reconstructed, as tables: errors with intervals by episode, and beside each control."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from actlens.claims import Claim
from actlens.notebook import DrawnAsTables
from actlens.reconstruction.limits import HALF_A_CUBE
from actlens.reconstruction.material import (
    PIXELS,
    STATE,
    UNTRAINED,
    VECTOR,
    VECTORS,
)
from actlens.reconstruction.reading import (
    DRAWABLE,
    MEAN,
    NEAREST,
    SHUFFLED,
    Decoder,
    Fitted,
    Reading,
)
from actlens.statistics import Interval, false_discovery, pooled_ratio, sign_flip_p

if TYPE_CHECKING:
    import pandas as pd

SUBJECTS = (VECTOR, VECTORS)
CONTROLS = (MEAN, NEAREST, STATE, SHUFFLED, UNTRAINED, "predicted chunk", PIXELS)
PICTURE = "picture"


@dataclass(frozen=True)
class MomentRead:
    """All readings of one moment, and which scenes belong to whom."""

    moment: str
    readings: tuple[Reading, ...]
    sets: Mapping[str, Int[np.ndarray, " part"]]
    episodes: Int[np.ndarray, " scene"]
    addresses: tuple[str, ...]
    units: Mapping[str, str]
    """Quantity -> its unit."""
    cameras: tuple[str, ...]
    n_changed: Float[np.ndarray, " scene"] | None
    """Numbers of a picture that differ from the usual one; None without cameras."""

    def reading(self, source: str, fitted: Fitted, decoder: Decoder = Decoder.ANY) -> Reading:
        """The one reading of a source; KeyError if there is none."""
        for one in self.readings:
            found = one.decoder is decoder or one.decoder is Decoder.NONE
            if one.source == source and one.fitted is fitted and found:
                return one
        raise KeyError(f"{self.moment}: nothing was read from {source!r} ({fitted}, {decoder}).")

    def rows(self, reading: Reading, scenes: str) -> Int[np.ndarray, " row"]:
        """Where a reading has the scenes of a set."""
        return np.flatnonzero(np.isin(reading.known, self.sets[scenes]))

    def groups(self, reading: Reading, scenes: str) -> Int[np.ndarray, " row"]:
        """The episodes of these rows."""
        return self.episodes[reading.known[self.rows(reading, scenes)]]

    def sets_of(self, fitted: Fitted) -> tuple[str, ...]:
        """The sets that a kind of decoder was tested on."""
        reading = self.reading(MEAN, fitted)
        return tuple(name for name in self.sets if len(self.rows(reading, name)))


def pooled(
    above: Float[np.ndarray, " row"],
    below: Float[np.ndarray, " row"],
    groups: Int[np.ndarray, " row"],
    seed: int,
) -> Interval:
    """A ratio of sums with its interval over episodes."""
    found = pooled_ratio(above[None], below[None], clusters=groups, seed=seed)
    return Interval(found.estimate[0], found.low[0], found.high[0])


@dataclass(frozen=True)
class Reconstruction(DrawnAsTables):
    """What each site holds of scenes, as far as decoders tell."""

    moments: tuple[MomentRead, ...]
    claims: tuple[Claim, ...]
    seed: int

    def frames(self) -> dict[str, "pd.DataFrame"]:
        """Tables: `state`, `pictures`, `cubes`, `paired`, `claims`; empty where nothing was."""
        import pandas as pd

        found = {
            "state": pd.DataFrame([row for m in self.moments for row in self._state(m)]),
            "pictures": pd.DataFrame([row for m in self.moments for row in self._pictures(m)]),
            "cubes": pd.DataFrame([row for m in self.moments for row in self._cubes(m)]),
            "paired": pd.DataFrame([row for m in self.moments for row in self._paired(m)]),
            "claims": pd.DataFrame([vars(one) for one in self.claims]),
        }
        if len(paired := found["paired"]):
            found["paired"] = paired.assign(q=false_discovery(paired.p.to_numpy()))
        return found

    def _each(self, moment: MomentRead):
        for reading in moment.readings:
            for name in moment.sets:
                rows = moment.rows(reading, name)
                if len(rows):
                    head = {
                        "moment": moment.moment,
                        "fitted": reading.fitted.value,
                        "scenes": name,
                        "source": reading.source,
                        "decoder": reading.decoder.value,
                    }
                    yield reading, rows, moment.groups(reading, name), head

    def _state(self, moment: MomentRead):
        for reading, rows, groups, head in self._each(moment):
            mean = moment.reading(MEAN, reading.fitted)
            for quantity, errors in reading.state.items():
                off, ones = errors.error[rows], np.ones(len(rows))
                error = pooled(off, ones, groups, self.seed)
                known = mean.state[quantity].squared[rows]
                left = pooled(errors.squared[rows], known, groups, self.seed)
                yield head | {
                    "quantity": quantity,
                    "unit": moment.units[quantity],
                    **_bounds("error", error),
                    "median": float(np.median(off)),
                    **_bounds("r2", rest_of(left)),
                    "episodes": len(np.unique(groups)),
                }

    def _pictures(self, moment: MomentRead):
        if moment.n_changed is None:
            return
        for reading, rows, groups, head in self._each(moment):
            errors = reading.pictures
            if errors is None:
                continue
            mean = moment.reading(MEAN, reading.fitted).pictures
            best = moment.reading(DRAWABLE, reading.fitted).pictures
            assert mean is not None
            assert best is not None
            own, usual = errors.squared[rows], mean.squared[rows]
            changed = moment.n_changed[reading.known[rows]]
            drawn = pooled(usual - own, usual - best.squared[rows], groups, self.seed)
            off = pooled(errors.changed[rows], changed, groups, self.seed)
            overlap = pooled(errors.overlap[rows], errors.union[rows], groups, self.seed)
            yield head | {
                **_bounds("explained", rest_of(pooled(own, usual, groups, self.seed))),
                **_bounds("of_drawable", drawn),
                **_bounds("rmse_changed", _levels(off)),
                **_bounds("silhouette", overlap),
                "episodes": len(np.unique(groups)),
                "decoders": "; ".join(dict.fromkeys(str(one.kernel) for one in reading.kernels)),
            }

    def _cubes(self, moment: MomentRead):
        for reading, rows, groups, head in self._each(moment):
            if reading.pictures is None or np.isnan(reading.pictures.off).all():
                continue
            off = reading.pictures.off[rows]
            views = [(name, off[:, [i]]) for i, name in enumerate(moment.cameras)]
            for camera, of in [*views, ("all cameras", off)]:
                seen = ~np.isnan(of)
                if not seen.any():
                    continue
                share = pooled(hits(of), seen.sum(1).astype(float), groups, self.seed)
                drawn = of[np.isfinite(of)]
                yield head | {
                    "camera": camera,
                    "seen": int(seen.sum()),
                    "missed": int(np.isinf(of).sum()),
                    "median_mm": float(np.median(drawn)) if len(drawn) else np.nan,
                    **_bounds("within_half_a_cube", share),
                }

    def _paired(self, moment: MomentRead):
        for fitted in dict.fromkeys(reading.fitted for reading in moment.readings):
            sources = {reading.source for reading in moment.readings}
            for subject in SUBJECTS:
                for control in (name for name in CONTROLS if name in sources):
                    a, b = (moment.reading(name, fitted) for name in (subject, control))
                    for scenes in moment.sets_of(fitted):
                        head = {
                            "moment": moment.moment,
                            "fitted": fitted.value,
                            "scenes": scenes,
                            "source": subject,
                            "control": control,
                        }
                        for row in self._beside(moment, a, b, scenes):
                            yield head | row

    def _beside(self, moment: MomentRead, a: Reading, b: Reading, scenes: str):
        rows, groups = moment.rows(a, scenes), moment.groups(a, scenes)
        both = {name: (a.state[name].error, b.state[name].error) for name in a.state}
        if a.pictures is not None and b.pictures is not None:
            both[PICTURE] = (a.pictures.squared, b.pictures.squared)
        for name, (own, other) in both.items():
            ratio = pooled(own[rows], other[rows], groups, self.seed)
            p = sign_flip_p((own - other)[rows], clusters=groups, seed=self.seed)
            yield {"measure": name, **_bounds("ratio", ratio), "p": float(p)}


def hits(off: Float[np.ndarray, "row camera"]) -> Float[np.ndarray, " row"]:
    """In how many pictures the cube is drawn within half a cube; not where it cannot be seen."""
    return (np.nan_to_num(off, nan=np.inf) <= HALF_A_CUBE).sum(1).astype(float)


def rest_of(share: Interval) -> Interval:
    """1 minus a share."""
    return Interval(1 - share.estimate, 1 - share.high, 1 - share.low)


def _levels(squared: Interval) -> Interval:
    """Mean squared errors as root mean squares in grey levels, 0 to 255."""
    return Interval(*(255 * np.sqrt(x) for x in (squared.estimate, squared.low, squared.high)))


def _bounds(name: str, found: Interval) -> dict[str, float]:
    return {
        name: float(found.estimate),
        f"{name}_low": float(found.low),
        f"{name}_high": float(found.high),
    }
