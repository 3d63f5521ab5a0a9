"""The action-lookup-table similarity of He et al., beside the score of the expert itself."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from actlens.retrieval.jackknife import Undefined, Value, by_episode, jackknife, ratio
from actlens.retrieval.keys import RetrievalError


@dataclass(frozen=True)
class LookupSimilarity:
    """S = 1 - |tau - tau_1| / |tau_1 - tau_2|, averaged over scenes.

    tau is a chunk, tau_1 and tau_2 the two demonstrated chunks of different episodes that are
    nearest to it. 1: the chunk is a demonstrated one. S has no null of its own: it rises with the
    spacing of the demonstrations. A perfect rule has the expert's S, so the policy's says something
    only by how much it exceeds that.
    """

    policy: Value
    expert: Value
    excess: Value
    """Policy minus expert, on the same scenes."""
    novelty: Value
    """|tau - tau_1| of the policy over that of the expert, as a ratio of sums. 0: what the policy
    does was demonstrated, be it where it belongs or elsewhere; 1: it is as new as what the expert
    does. It does not depend on how the demonstrations are spaced, and its null is built in. Errors
    of any kind raise it: a policy that retrieves badly looks newer than it is."""
    left_out: int
    """Scenes whose two nearest demonstrations are alike, for which S has no value."""


def lookup_similarity(
    policy: Float[np.ndarray, "scene t"],
    expert: Float[np.ndarray, "scene t"],
    demonstrated: Float[np.ndarray, "demonstration t"],
    *,
    episodes: Int[np.ndarray, " scene"],
    demonstrated_episodes: Int[np.ndarray, " demonstration"],
    counted: Bool[np.ndarray, "scene t"] | None = None,
    own: Bool[np.ndarray, "scene demonstration"] | None = None,
) -> LookupSimilarity:
    """The policy's similarity and the expert's.

    Args:
        policy: flat chunks over the joints' spread; those of the expert and demonstrations alike.
        counted: False where nothing was demonstrated; distances of a scene leave that out.
        own: demonstrations that a scene may not find: those of its own episode.

    Raises:
        RetrievalError: if a scene is left with demonstrations of fewer than two episodes.
    """
    scores, nearest = np.empty((2, 2, len(policy)))
    masks = np.ones(policy.shape, dtype=bool) if counted is None else counted
    patterns, pattern_of = np.unique(masks, axis=0, return_inverse=True)
    for i, kept in enumerate(patterns):
        rows = np.flatnonzero(pattern_of.reshape(-1) == i)
        taken = None if own is None else own[rows]
        for j, chunks in enumerate((policy, expert)):
            scores[j, rows], nearest[j, rows] = _scores(
                chunks[rows][:, kept], demonstrated[:, kept], demonstrated_episodes, taken
            )
    novelty: Value = Undefined("the expert does what was demonstrated in every scene")
    if nearest[1].any():
        novelty = jackknife(ratio, by_episode(nearest, episodes))
    known = np.isfinite(scores).all(0)
    if not known.any():
        nothing = Undefined("the two nearest demonstrations of every scene are alike")
        return LookupSimilarity(nothing, nothing, nothing, novelty, len(policy))
    ours, theirs = scores[:, known]
    mean = lambda x: jackknife(ratio, by_episode(np.stack([x, np.ones(len(x))]), episodes[known]))
    left_out = int((~known).sum())
    return LookupSimilarity(mean(ours), mean(theirs), mean(ours - theirs), novelty, left_out)


def _scores(
    chunks: Float[np.ndarray, "scene t"],
    demonstrated: Float[np.ndarray, "demonstration t"],
    episodes: Int[np.ndarray, " demonstration"],
    own: Bool[np.ndarray, "scene demonstration"] | None,
) -> tuple[Float[np.ndarray, " scene"], Float[np.ndarray, " scene"]]:
    """S of every chunk (NaN where its two nearest demonstrations are alike), and |tau - tau_1|."""
    distance = cdist(chunks, demonstrated)
    if own is not None:
        distance[own] = np.inf
    rows = np.arange(len(chunks))
    first = distance.argmin(1)
    nearest = distance[rows, first]
    distance[episodes[first][:, None] == episodes] = np.inf
    second = distance.argmin(1)
    if not np.isfinite(distance[rows, second]).all():
        raise RetrievalError("S compares demonstrations of two episodes other than the scene's.")
    between = np.linalg.norm(demonstrated[first] - demonstrated[second], axis=1)
    size = np.linalg.norm(demonstrated, axis=1).max()
    apart = between > 1e-9 * size
    share = np.divide(nearest, between, out=np.full(len(rows), np.nan), where=apart)
    return 1 - share, nearest
