"""Ridge regression at every penalty from one decomposition, whole episodes left out exactly."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class RidgePath:
    """Keys X = U S V' about their mean, and answers about theirs; the intercept has no penalty.

    Fitted answers are H Y with H = 11'/n + U diag(s^2 / (s^2 + p)) U'. Leaving out the rows g, the
    residuals there are (I - H_gg)^-1 times those of the fit (Hastie et al. 2009, 7.10, by groups).
    """

    left: Float[np.ndarray, "scene rank"]
    squares: Float[np.ndarray, " rank"]
    """Squared singular values."""
    keys: Float[np.ndarray, "scene d"]
    mean_key: Float[np.ndarray, " d"]
    answers: Float[np.ndarray, "scene t"]

    @classmethod
    def of(
        cls, keys: Float[np.ndarray, "scene d"], answers: Float[np.ndarray, "scene t"]
    ) -> "RidgePath":
        """Decompose the keys, in float64."""
        mean = keys.mean(0, dtype=np.float64)
        centred = keys.astype(np.float64) - mean
        if centred.shape[1] <= centred.shape[0]:
            left, singular, _ = np.linalg.svd(centred, full_matrices=False)
            squares = np.square(singular)
        else:
            squares, left = np.linalg.eigh(centred @ centred.T)
        kept = squares > 1e-12 * max(squares.max(), np.finfo(float).tiny)
        return cls(left[:, kept], squares[kept], centred, mean, answers.astype(np.float64))

    def across(
        self, episodes: Int[np.ndarray, " scene"], penalty: float
    ) -> Float[np.ndarray, "scene t"]:
        """The answer to every scene of a fit without its episode.

        Args:
            penalty: as a share of the largest squared singular value.
        """
        shrunk = self.left * self._kept(penalty)
        fitted = self.answers.mean(0) + shrunk @ (self.left.T @ self.answers)
        answered = np.empty_like(self.answers)
        for episode in np.unique(episodes):
            rows = np.flatnonzero(episodes == episode)
            hat = shrunk[rows] @ self.left[rows].T + 1 / len(self.answers)
            residual = self.answers[rows] - fitted[rows]
            left_out = np.linalg.solve(np.eye(len(rows)) - hat, residual)
            answered[rows] = self.answers[rows] - left_out
        return answered

    def predict(
        self, queries: Float[np.ndarray, "query d"], penalty: float
    ) -> Float[np.ndarray, "query t"]:
        """The answers to other scenes of a fit to all."""
        weights = self._kept(penalty) / self.squares
        along = (self.left * weights) @ (self.left.T @ self.answers)
        return self.answers.mean(0) + (queries - self.mean_key) @ (self.keys.T @ along)

    def _kept(self, penalty: float) -> Float[np.ndarray, " rank"]:
        """How much of each direction the penalty leaves."""
        if not len(self.squares):
            return self.squares
        return self.squares / (self.squares + penalty * self.squares.max())
