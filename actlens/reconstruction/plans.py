"""Who is fitted on whom: never an episode on itself."""

from collections.abc import Iterator
from enum import StrEnum

import numpy as np
from jaxtyping import Int

from actlens.errors import SceneError
from actlens.kernel_ridge import Fold, grouped_folds
from actlens.reconstruction.material import DEMONSTRATIONS, Material
from actlens.reconstruction.options import ReconstructionOptions


class Fitted(StrEnum):
    """What a decoder was fitted on."""

    DEMONSTRATIONS = DEMONSTRATIONS
    """Is the scene held in the way that a reader of demonstrations finds, as the policy is one?"""
    TAUGHT = "taught"
    """Also on other unseen episodes: is it held at all?"""


def plans(
    material: Material, options: ReconstructionOptions
) -> Iterator[tuple[Fitted, tuple[Fold, ...]]]:
    """Who is fitted on whom; a demonstration is predicted from other folds' demonstrations."""
    shown = material.sets[DEMONSTRATIONS]
    unseen = np.setdiff1d(np.arange(len(material.episodes)), shown)
    # Episodes of one size go to the folds in turn: every fold has some of all sets.
    parts = grouped_folds(material.episodes[shown], options.folds)
    folds = [Fold(shown[part.train], shown[part.test]) for part in parts]
    if len(unseen):
        folds.append(Fold(shown, unseen))
    yield Fitted.DEMONSTRATIONS, tuple(folds)
    if len(np.unique(material.episodes[unseen])) >= options.folds:
        parts = grouped_folds(material.episodes[unseen], options.folds)
        taught = [
            Fold(np.concatenate([shown, unseen[part.train]]), unseen[part.test]) for part in parts
        ]
        yield Fitted.TAUGHT, tuple(taught)


def other_episodes(
    groups: Int[np.ndarray, " scene"], rng: np.random.Generator
) -> Int[np.ndarray, " scene"]:
    """A reordering of scenes in which each stands in the place of one of another episode.

    Raises:
        SceneError: if one episode has more than half of the scenes.
    """
    number = np.unique(groups, return_inverse=True)[1]
    largest = int(np.bincount(number).max())
    if 2 * largest > len(groups):
        raise SceneError("One episode has more than half of the scenes: nothing to shuffle with.")
    order = np.argsort(rng.permutation(number.max() + 1)[number], kind="stable")
    # Sorted by episode, a shift by the longest episode or more leaves none in its own.
    shifted = np.empty_like(order)
    shifted[order] = np.roll(order, rng.integers(largest, len(groups) - largest + 1))
    return shifted
