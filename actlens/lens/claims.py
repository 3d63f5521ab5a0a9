"""What lenses say of claims about memory and about themselves."""

from collections.abc import Sequence

import numpy as np

from actlens.claims import Claim, at_least, at_most, judged
from actlens.lens.decodings import Decodings, State, When
from actlens.lens.errors import Scale, error_ratio
from actlens.lens.places import MEAN_ACTION, Part, Place, Sublayer, Variant

SETTLED = "the action is settled before the last MLP, which an affine map can replace"
MISLEADS = "a raw lens overstates what earlier states lack"
_LITTLE = 0.1
"""Of the mean action's error: what a linear readout may miss."""
_MUCH = 1.5
"""Times the tuned lens' error."""
_MEAN = State(MEAN_ACTION, Variant.MEAN)


def lens_claims(all_of: Sequence[Decodings], scale: Scale) -> tuple[Claim, ...]:
    """Judged at frame 0, in every set of scenes; of the raw lens, in the first set.

    With one decoder layer, that the action vector holds all of the action follows from the
    network's plan: nothing else leads to it. That an affine map can read it off does not.
    """
    first = [one for one in all_of if one.when is When.START] or list(all_of)
    return (*(_settled(one, scale) for one in first), *_misleading(first[0], scale))


def _settled(part: Decodings, scale: Scale) -> Claim:
    last = max(s.place.layer for s in part.states if s.place.part is Part.DECODER)
    place = Place(Part.DECODER, last, str(Sublayer.CROSS))
    control = error_ratio(part, State(place, Variant.SHUFFLED), _MEAN, scale)
    return judged(
        SETTLED,
        part.name,
        f"tuned error after {place.name} / error of the mean action",
        error_ratio(part, State(place, Variant.TUNED), _MEAN, scale),
        null=float(control.estimate),
        null_is="tuned on shuffled scenes",
        rule=(at_most, _LITTLE),
    )


def _misleading(part: Decodings, scale: Scale) -> list[Claim]:
    tuned = [state for state in part.states if state.variant is Variant.TUNED]
    seeing = [s for s in tuned if s.place.part is Part.ENCODER or s.place.detail == Sublayer.CROSS]
    found = [(s, error_ratio(part, State(s.place, Variant.RAW), s, scale)) for s in seeing]
    return [
        judged(
            MISLEADS,
            f"{state.place.name}, {part.name}",
            "raw error / tuned error",
            ratio,
            null=1.0,
            null_is="no difference",
            rule=(at_least, _MUCH),
        )
        for state, ratio in found
        if np.isfinite(ratio.estimate)
    ]
