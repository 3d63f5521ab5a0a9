"""What could stand in for the policy's decoder, and for its MLP: a table, or something smooth?

That a table does well is no evidence of a table: where data are dense both do. What tells is the
contest between them on inputs of episodes that neither was given.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.mechanism.stand_in import SURROGATES
from actlens.mechanism.tail import Vectored

_COMPONENTS = 10
_SMOOTH = {
    "kernelridge__gamma": [0.01, 0.03, 0.1, 0.3],
    "kernelridge__alpha": [1e-5, 1e-3, 1e-1],
}


@dataclass(frozen=True)
class Contest:
    """Squared errors in predicting what the policy does in scenes that it was not trained on."""

    table: Float[np.ndarray, " scene"]
    """By its actions in the nearest scene that it was trained on."""
    smooth: Float[np.ndarray, " scene"]
    """By kernel ridge regression from all of those at the same frame."""

    @property
    def balance(self) -> float:
        """(table - smooth) / (table + smooth): 1 if the smooth one wins all, -1 if the table.

        Near 0 both fail, as where a table falls back on a default between its entries.
        """
        table, smooth = np.nansum(self.table), np.nansum(self.smooth)
        return float((table - smooth) / (table + smooth)) if table + smooth else np.nan


def contest(
    trained: Vectored,
    frames: Int[np.ndarray, " trained"],
    groups: Int[np.ndarray, " trained"],
    held_out: Vectored,
    held_frames: Int[np.ndarray, " held_out"],
) -> Contest:
    """Which predicts what the policy does where it was shown nothing?

    In the leading principal components of the action vectors, frame by frame and position by
    position; penalty and width of the smooth rival by cross-validation over episodes. Scenes at
    frames of which fewer than 10 were trained on are left out (NaN).

    Args:
        groups: the episodes of the trained scenes.

    Raises:
        SceneError: if no frame is left.
    """
    table, smooth = np.full(len(held_out.x), np.nan), np.full(len(held_out.x), np.nan)
    for frame in np.unique(held_frames):
        at, asked = np.flatnonzero(frames == frame), np.flatnonzero(held_frames == frame)
        if len(np.unique(groups[at])) < _MIN_EPISODES:
            continue
        errors = np.zeros((2, len(asked)))
        for position in range(trained.x.shape[1]):
            x, y = _at(trained, at, position)
            x_asked, y_asked = _at(held_out, asked, position)
            for row, rival in enumerate(_rivals(len(at), groups[at])):
                by_episode = {"groups": groups[at]} if row else {}
                predicted = rival.fit(x, y, **by_episode).predict(x_asked)
                errors[row] += ((predicted - y_asked) ** 2).sum(1)
        table[asked], smooth[asked] = errors
    if np.isnan(table).all():
        raise SceneError(
            f"No frame has trained scenes of {_MIN_EPISODES} episodes and held-out ones: there is "
            "no contest."
        )
    return Contest(table, smooth)


_MIN_EPISODES = 10


def _at(
    run: Vectored, scenes: Int[np.ndarray, " chosen"], position: int
) -> tuple[Float[np.ndarray, "chosen d_model"], Float[np.ndarray, "chosen joint"]]:
    at = torch.as_tensor(scenes)
    both = run.x[at, position], run.actions[at, position]
    x, y = (values.double().cpu().numpy() for values in both)
    return x, y


def _rivals(n: int, groups: Int[np.ndarray, " trained"]) -> tuple[Pipeline, GridSearchCV]:
    folds = GroupKFold(min(4, len(np.unique(groups))))
    fewest = min(len(rows) for rows, _ in folds.split(np.zeros(n), groups=groups))
    leading = lambda: PCA(min(_COMPONENTS, fewest - 1), svd_solver="full")
    smooth = make_pipeline(leading(), StandardScaler(), KernelRidge(kernel="rbf"))
    return (
        make_pipeline(leading(), KNeighborsRegressor(1)),
        GridSearchCV(smooth, _SMOOTH, cv=folds, scoring="neg_mean_squared_error"),
    )


@dataclass(frozen=True)
class Substitute:
    """What happens to the actions if something else writes for the MLP."""

    name: str
    change: Float[np.ndarray, " scene"]
    """Mean absolute change over positions and joints, dataset units, by scene."""


@torch.no_grad()
def substitutes(
    run: Vectored, groups: Int[np.ndarray, " scene"], *, n_folds: int = 5
) -> tuple[Substitute, ...]:
    """Every surrogate of the MLP: nothing, the mean, a linear map, a table, a kernel smoother.

    All are fitted on other episodes than they are tried on, at every position by itself.
    """
    tail = run.tail
    wrote = tail.output(tail.coefficients(run.x))
    read = tail.read(run.x).double().cpu().numpy()
    outputs = wrote.double().cpu().numpy()
    made = {surrogate.name: np.zeros_like(outputs) for surrogate in SURROGATES}
    for position in range(run.x.shape[1]):
        x, y = read[:, position], outputs[:, position]
        for train, test in GroupKFold(n_folds).split(x, groups=groups):
            for surrogate in SURROGATES:
                fitted = surrogate.fit(x[train], y[train], groups[train])
                made[surrogate.name][test, position] = fitted.predict(x[test])
    units = lambda actions: tail.model.normalizer.unnormalize(ACTION_KEY, actions).double()
    own = units(run.actions)
    return tuple(
        Substitute(
            name,
            _mean_change(units(tail.with_output(run.x, torch.from_numpy(output).to(wrote))), own),
        )
        for name, output in made.items()
    )


def _mean_change(
    actions: Float[Tensor, "scene position joint"], own: Float[Tensor, "scene position joint"]
) -> Float[np.ndarray, " scene"]:
    return (actions - own).abs().mean((1, 2)).cpu().numpy()
