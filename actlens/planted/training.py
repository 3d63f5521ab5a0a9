"""Policies whose last MLP, norms and head were trained on what their encoder says of some scenes.

    standard = trained(model, stored)                      # demonstrations, as they are
    memoriser = trained(model, shuffled(stored), BY_HEART, name="shuffled", generalises=False)
    exceptions = trained(model, with_exceptions(stored, 0.25), BY_HEART, name="exceptions")
    distilled = trained(model, retrieved(dense, stored, distances), BY_HEART, name="distilled")
    rule = trained(model, dense, name="dense rule", generalises=True)   # of an expert

A decoder trained on actions shuffled over episodes can only memorise: there is no rule to find. By
every local statistic it looks like a smooth rule none the less, which is what it is here for.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from actlens.model.act import HookedACT
from actlens.planted.description import Planted, Truth
from actlens.planted.errors import PlantError
from actlens.planted.rewriting import rewritten
from actlens.planted.stored import Stored
from actlens.planted.twins import largest_error
from actlens.tails import Shape, Tails, Training, fit, whiten


@dataclass(frozen=True)
class TrainingOptions:
    """AdamW on the L1 loss, as ACT is trained, with one rise and fall of the learning rate."""

    steps: int = 2000
    batch_size: int = 256
    """Chunk positions."""
    lr: float = 2e-3
    weight_decay: float = 1e-4
    d_mlp: int | None = None
    """Neurons; as many as the policy has if None, and no fewer."""
    whitened: float | None = None
    """Start from keys that see all directions in which entries differ alike, down to this share of
    the largest variance. Where neighbours differ by little, learning by heart is quick this way
    and hardly possible from torch's own start, which is used if None."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 10 or self.batch_size < 1 or self.lr <= 0:
            raise PlantError(
                f"Training needs 10 steps, a batch and a learning rate, got {self.steps}, "
                f"{self.batch_size} and {self.lr}."
            )


BY_HEART = TrainingOptions(steps=2500, weight_decay=0.0, d_mlp=384, whitened=1e-6)
"""Enough to learn sixty scenes of four positions, whatever they are to answer."""


def trained(
    model: HookedACT,
    stored: Stored,
    options: TrainingOptions | None = None,
    *,
    name: str = "trained",
    generalises: bool | None = None,
) -> Planted:
    """A copy of a policy whose last MLP, norms and head are trained anew on stored entries.

    Encoder and cross-attention stay as they are. Deterministic in the options on one machine.

    Args:
        generalises: what is known about the result, for its `truth`.

    Raises:
        PlantError: if the policy is wider than `d_mlp`.
    """
    options = options or TrainingOptions()
    config = model.config
    width = options.d_mlp or config.d_mlp
    inputs, targets = (part.float() for part in stored.entries())
    training = Training(options.steps, options.lr, options.weight_decay)
    draw = lambda: torch.randint(len(inputs), (1, options.batch_size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        tails = Tails.drawn(Shape(config.d_model, width, config.action_dim), 1)
        tails.weights["action_head.bias"][:] = targets.mean(0)
        if options.whitened is not None:
            whiten(tails, inputs.double(), options.whitened)
        fit(tails, inputs, targets, draw, training)
    source = f"decoder trained anew ({name})"
    twin = rewritten(model, tails.changes(model, 0), d_mlp=width, source=source)
    nobody = np.full(width, -1)
    error = largest_error(twin, stored)
    return Planted(twin, name, Truth(0.0, generalises, None), stored, (), nobody, error)


def shuffled(stored: Stored, seed: int = 0) -> Stored:
    """Every episode answers as another one does in the same frames.

    Raises:
        PlantError: if there are fewer than two episodes, or they have different frames.
    """
    episodes, rows = _rows_by_episode(stored)
    order = _moved(len(episodes), seed)
    return _answering_as(stored, rows, rows[order])


def with_exceptions(stored: Stored, share: float, seed: int = 0) -> Stored:
    """A share of the episodes answers as another one of them does, the others as they did.

    Raises:
        PlantError: if the share makes fewer than two exceptions, or episodes differ in frames.
    """
    episodes, rows = _rows_by_episode(stored)
    n = round(share * len(episodes))
    if not 2 <= n <= len(episodes):
        raise PlantError(f"A share of {share} of {len(episodes)} episodes is {n}: need at least 2.")
    chosen = np.random.default_rng(seed).permutation(len(episodes))[:n]
    return _answering_as(stored, rows[chosen], rows[chosen][_moved(n, seed)])


def retrieved(dense: Stored, stored: Stored, distances: Float[np.ndarray, "dense scene"]) -> Stored:
    """Dense scenes with the answer of the nearest stored one: what a 1-NN memory would say.

    Args:
        distances: from every dense scene to every stored one (`World.distances`).

    Raises:
        PlantError: if a dense scene is not comparable to any stored one.
    """
    if not np.isfinite(distances).any(1).all():
        raise PlantError("Some scenes have no stored one of the same frame to be near to.")
    nearest = distances.argmin(1)
    return Stored(
        dense.inputs, stored.actions[nearest], stored.valid[nearest], dense.episode, dense.frame
    )


def _rows_by_episode(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    """Episodes, and their scenes in the order of their frames."""
    order = np.lexsort((stored.frame, stored.episode))
    episodes, count = np.unique(stored.episode, return_counts=True)
    if len(episodes) < 2 or len(set(count)) > 1:
        raise PlantError("Exchanging answers needs two episodes or more, of equally many scenes.")
    rows = order.reshape(len(episodes), -1)
    if (stored.frame[rows] != stored.frame[rows[0]]).any():
        raise PlantError("Exchanging answers needs the same frames in all episodes.")
    return episodes, rows


def _moved(n: int, seed: int) -> np.ndarray:
    """A cyclic order, so that none stays where it is."""
    order = np.random.default_rng([seed, 1]).permutation(n)
    moved = np.empty(n, np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def _answering_as(stored: Stored, rows: np.ndarray, others: np.ndarray) -> Stored:
    actions, valid = stored.actions.clone(), stored.valid.clone()
    actions[rows.ravel()] = stored.actions[others.ravel()]
    valid[rows.ravel()] = stored.valid[others.ravel()]
    return Stored(stored.inputs, actions, valid, stored.episode, stored.frame)
