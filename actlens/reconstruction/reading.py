"""Everything about scenes decoded from each site, and from what must be beaten."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int

from actlens.kernel_ridge import Fold
from actlens.reconstruction.material import (
    DEMONSTRATIONS,
    ENCODER,
    LABELS,
    STATE,
    UNTRAINED,
    VECTOR,
    Feature,
    Material,
)
from actlens.reconstruction.options import ReconstructionOptions
from actlens.reconstruction.pictures import Components, Errors, Judge, Pictures
from actlens.reconstruction.plans import Fitted, other_episodes, plans
from actlens.reconstruction.quantities import Part
from actlens.reconstruction.smoothers import (
    ANY,
    LINEAR,
    Coordinates,
    Kernel,
    Mixture,
    mixtures,
    nearest,
)

REAL = "real picture"
DRAWABLE = "what can be drawn"
"""The picture, through the components of the fitted ones: the pixels-to-pixels ceiling."""
MEAN = "mean"
NEAREST = f"nearest fitted scene by {VECTOR}"
SHUFFLED = f"{VECTOR}, shuffled"
SHOWN = (REAL, DRAWABLE, LABELS, ENCODER, VECTOR, UNTRAINED, STATE, NEAREST, MEAN)
"""Whose pictures are shown, in this order."""


class Decoder(StrEnum):
    """A family of decoders."""

    LINEAR = "linear"
    ANY = "linear or kernel"
    """Whichever inner folds choose."""
    NONE = "-"
    """Nothing is fitted."""


_KERNELS: Mapping[Decoder, tuple[Kernel, ...]] = {Decoder.LINEAR: LINEAR, Decoder.ANY: ANY}


@dataclass(frozen=True)
class StateErrors:
    """Of one quantity; NaN for scenes that were not predicted."""

    error: Float[np.ndarray, " scene"]
    """In the quantity's unit."""
    squared: Float[np.ndarray, " scene"]


@dataclass(frozen=True)
class Reading:
    """The scenes of a moment as they are decoded from one source."""

    moment: str
    fitted: Fitted
    source: str
    decoder: Decoder
    known: Int[np.ndarray, " known"]
    """The scenes that were predicted, in the order of `pictures`."""
    state: Mapping[str, StateErrors]
    pictures: Errors | None
    drawn: Mapping[int, Float[np.ndarray, "camera 3 h w"]]
    """Scene -> picture, of the scenes that are kept to be shown."""
    kernels: tuple[Mixture, ...] = ()
    """The decoders of the pictures (of the first quantity without cameras), by fold."""


def judge_of(material: Material) -> Judge | None:
    """What drawn pictures of a moment are held against; None without cameras."""
    if material.pictures is None:
        return None
    usual = np.median(material.pictures[material.sets[DEMONSTRATIONS]], axis=0)
    return Judge(material.pictures, usual, material.cameras, material.places)


def kept_examples(material: Material, n: int) -> tuple[int, ...]:
    """Scenes to be shown: some of every unseen set, spread over it; of the demonstrations if there
    is no other."""
    sets = {k: v for k, v in material.sets.items() if k != DEMONSTRATIONS} or material.sets
    return tuple(
        int(scene) for some in sets.values() for scene in some[(np.arange(n) * len(some)) // n]
    ) if n else ()  # fmt: skip


def read_all(
    material: Material,
    options: ReconstructionOptions,
    *,
    progress: Callable[[int], None] = lambda n_readings: None,
) -> Iterator[Reading]:
    """Every source by every decoder that makes sense for it.

    Args:
        progress: told of every reading.
    """
    for fitted, splits in plans(material, options):
        reader = _Reader.of(material, fitted, splits, options)
        for reading in reader.all():
            progress(1)
            yield reading


@dataclass(frozen=True)
class _Reader:
    material: Material
    fitted: Fitted
    splits: tuple[Fold, ...]
    options: ReconstructionOptions
    judge: Judge | None
    known: Int[np.ndarray, " known"]
    examples: tuple[int, ...]

    @classmethod
    def of(
        cls,
        material: Material,
        fitted: Fitted,
        splits: tuple[Fold, ...],
        options: ReconstructionOptions,
    ) -> "_Reader":
        known = np.concatenate([split.test for split in splits])
        judge = judge_of(material)
        if judge is not None:
            places = None if judge.places is None else judge.places[known]
            judge = Judge(judge.real[known], judge.usual, judge.cameras, places)
        kept = kept_examples(material, options.examples)
        return cls(material, fitted, splits, options, judge, known, kept)

    def all(self) -> Iterator[Reading]:
        for feature in self.material.features:
            for decoder in _KERNELS:
                yield self.decoded(feature, decoder)
        vector = self.material.feature(VECTOR)
        yield self.decoded(vector, Decoder.ANY, shuffled=True)
        yield self.mixed(NEAREST, lambda split: _one_each(nearest(vector.values, split), split))
        yield self.mixed(MEAN, lambda split: _alike(split))
        if self.material.pictures is not None:
            pictures = self.material.pictures
            drawable = [Components.of(pictures[s.train]).redrawn(pictures[s.test])
                        for s in self.splits]  # fmt: skip
            yield self.reading(DRAWABLE, Decoder.NONE, {}, np.concatenate(drawable))
            yield self.reading(REAL, Decoder.NONE, {}, pictures[self.known])

    def decoded(self, feature: Feature, decoder: Decoder, *, shuffled: bool = False) -> Reading:
        """Fitted on every split's own scenes."""
        rng = np.random.default_rng(self.options.seed)
        targets = [q.values for q in self.material.quantities]
        if self.material.pictures is not None:
            targets = [self.material.pictures, *targets]
        parts, decoders = [], []
        for split in self.splits:
            order = split.train
            if shuffled:
                order = split.train[other_episodes(self.material.episodes[split.train], rng)]
            fitted = [target[order] for target in targets]
            found = mixtures(
                feature.values,
                fitted,
                self.material.episodes,
                split,
                kernels=_KERNELS[decoder],
                coordinates=self.coordinates(order),
            )
            decoders.append(found[0])
            parts.append([m.of(target) for m, target in zip(found, fitted, strict=True)])
        name = SHUFFLED if shuffled else feature.name
        return self._joined(name, decoder, parts, tuple(decoders))

    def coordinates(self, scenes: Int[np.ndarray, " train"]) -> Coordinates:
        """Where the object and the arm are in some scenes, as far as it is known."""
        known = {
            part: [q.values[scenes] for q in self.material.quantities if q.part is part]
            for part in Part
        }
        joints = [*known[Part.ARM], *known[Part.GRIPPER]]
        place = known[Part.PLACE][0] if known[Part.PLACE] else None
        return Coordinates(place, np.concatenate(joints, 1) if joints else None)

    def mixed(self, source: str, weights: Callable[[Fold], np.ndarray]) -> Reading:
        """Weights over the fitted scenes that nothing is fitted for."""
        targets = [q.values for q in self.material.quantities]
        if self.material.pictures is not None:
            targets = [self.material.pictures, *targets]
        parts = []
        for split in self.splits:
            mixture = Mixture(weights(split), LINEAR[0], np.nan)
            parts.append([mixture.of(target[split.train]) for target in targets])
        return self._joined(source, Decoder.NONE, parts, ())

    def _joined(
        self,
        source: str,
        decoder: Decoder,
        parts: Sequence[Sequence[np.ndarray]],
        decoders: tuple[Mixture, ...],
    ) -> Reading:
        joined = [np.concatenate(of_target) for of_target in zip(*parts, strict=True)]
        drawn = joined.pop(0) if self.material.pictures is not None else None
        names = (q.name for q in self.material.quantities)
        return self.reading(source, decoder, dict(zip(names, joined, strict=True)), drawn, decoders)

    def reading(
        self,
        source: str,
        decoder: Decoder,
        predicted: Mapping[str, np.ndarray],
        drawn: Pictures | None,
        decoders: tuple[Mixture, ...] = (),
    ) -> Reading:
        """Predictions of the known scenes, held against the truth."""
        shown = self.material.sets[DEMONSTRATIONS]
        state = {}
        for quantity in self.material.quantities:
            if quantity.name in predicted:
                values, true = predicted[quantity.name], quantity.values[self.known]
                squared = quantity.squared(values, true, quantity.values[shown])
                state[quantity.name] = StateErrors(quantity.error(values, true), squared)
        kept: dict[int, np.ndarray] = {}
        errors = None
        if drawn is not None and self.judge is not None:
            errors = self.judge.errors(drawn)
            if source in SHOWN and decoder is not Decoder.LINEAR:
                at = {int(scene): i for i, scene in enumerate(self.known)}
                kept = {scene: drawn[at[scene]] for scene in self.examples if scene in at}
        return Reading(
            self.material.moment, self.fitted, source, decoder, self.known, state, errors, kept,
            decoders,
        )  # fmt: skip


def _one_each(chosen: np.ndarray, split: Fold) -> np.ndarray:
    weights = np.zeros((len(split.test), len(split.train)))
    weights[np.arange(len(chosen)), chosen] = 1.0
    return weights


def _alike(split: Fold) -> np.ndarray:
    return np.full((len(split.test), len(split.train)), 1 / len(split.train))
