"""What suffices in closed loop: surrogates of the MLP, of the decoder, and bare retrieval.

A surrogate that does as well as what it stands in for says that no more is needed *for these
starts*: where a table of stored outputs suffices, a linear map may suffice, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from actlens.config import ACTION_KEY
from actlens.mechanism import (
    LINEAR,
    NEAREST,
    SMOOTH,
    SURROGATES,
    Tail,
    Vectored,
    mlp_stand_in,
    tail_stand_in,
)
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.retrieval import Demonstrations, TaskState, Yardstick
from actlens.sim.closed_loop import pooled_columns
from actlens.sim.conditions import UNDISTURBED, Condition
from actlens.sim.environment import PickCube
from actlens.sim.kept_rollouts import KeptRollout
from actlens.sim.paired_success import paired_success
from actlens.sim.substitution import (
    LABELS,
    TaskRecall,
    mlp_substituted,
    retrieved_at_vectors,
    retrieved_by_task,
    tail_substituted,
    vector_site,
)
from actlens.statistics import false_discovery, wilson

ALL = "all"
"""The region of summaries over all starts."""


def vectored(model: HookedACT, demonstrations: Demonstrations) -> Vectored:
    """The action vectors and normalised actions of demonstrated scenes, where carried out.

    Args:
        demonstrations: with keys of `vector_site(model)`, run by this policy.
    """
    positions = list(executed_positions(model.config))
    like = model.action_head.weight
    normalised = model.normalizer.normalize(
        ACTION_KEY, torch.from_numpy(demonstrations.predicted).to(like)
    )
    keys = demonstrations.keys[vector_site(model).name]
    x = torch.from_numpy(keys[:, positions]).to(like)
    return Vectored(Tail(model), x, normalised[:, positions], tuple(positions))


def substitutions(
    model: HookedACT, demonstrations: Demonstrations, env: PickCube
) -> tuple[Condition, ...]:
    """Every surrogate of the MLP, three of the decoder's tail, retrieval by task and by vector.

    All are fitted on the demonstrations' scenes. Surrogates imitate the policy's own answers, also
    past an episode's end, where the policy was not taught but acts all the same.

    Args:
        demonstrations: with keys of `vector_site(model)`.
        env: in which the rollouts will happen.

    Raises:
        RetrievalError: if keys or labels are missing.
    """
    by_vector = retrieved_at_vectors(model, demonstrations)
    run, episodes = vectored(model, demonstrations), demonstrations.episodes
    mlp = [
        mlp_substituted(model, mlp_stand_in(run, surrogate, episodes)) for surrogate in SURROGATES
    ]
    tail = [
        tail_substituted(model, tail_stand_in(run, surrogate, episodes))
        for surrogate in (LINEAR, NEAREST, SMOOTH)
    ]
    executed = demonstrations.first(len(run.positions))
    yardstick = Yardstick.of(executed.actions, executed.counted)
    labels = [name for name in LABELS if name in demonstrations.labels]
    recall = TaskRecall.of(demonstrations, TaskState.of(executed, yardstick, labels))
    return (*mlp, *tail, retrieved_by_task(env, recall), by_vector)


@dataclass(frozen=True)
class SubstitutedRollouts(DrawnAsTable):
    """Rollouts of the same starts under every condition; `frame()` and `summary()` are the tables.

    A start whose undisturbed rollout is missing is left out.
    """

    rollouts: tuple[KeptRollout, ...]
    seed: int = 0
    """Of bootstraps."""

    @cached_property
    def undisturbed(self) -> Mapping[tuple[str, int], KeptRollout]:
        """By region and number of the start."""
        plain = (one for one in self.rollouts if one.condition == UNDISTURBED.name)
        return {(one.region, one.number): one for one in plain}

    def frame(self) -> pd.DataFrame:
        """One row a rollout.

        `tip_error_mm`: horizontal distance from gripper to cube where the gripper closed (lowest,
        if it never `closed`). `path_mm`: mean distance of the gripper from that of the undisturbed
        rollout at the same control step. `changed`: elements that differed from the policy's own.
        """
        rows = []
        for one in self.rollouts:
            plain = self.undisturbed.get((one.region, one.number))
            if plain is None:
                continue
            apart = 1000 * np.linalg.norm(one.tip - plain.tip, axis=-1)
            rows.append(
                {
                    "region": one.region,
                    "start": one.number,
                    "condition": one.condition,
                    "cube_x": one.cube_xy[0],
                    "cube_y": one.cube_xy[1],
                    "seed": one.seed,
                    "success": one.success,
                    "closed": one.closed,
                    "closing_step": one.closing_step,
                    "tip_error_mm": one.tip_error_mm,
                    "path_mm": float(apart[1:].mean()),
                    "changed": one.changed,
                }
            )
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """One row per region (and `all`) and condition, 95 % intervals over starts.

        `success` with Wilson's interval. Against the undisturbed rollouts of the same starts:
        `lost`, `gained`, `success_change` with Tango's interval, `p` (exact McNemar), `q`
        (Benjamini-Hochberg over the region's conditions); means of the change of `tip_error_mm` and
        of `path_mm` with a bootstrap (none below five starts). `tip_error_mm` is the median. Starts
        of `all` are as many of every region, not as an arm would meet them.
        """
        frame = self.frame()
        by_region = [*frame.groupby("region", sort=False)]
        parts = [*by_region, (ALL, frame)] if len(by_region) > 1 else by_region
        tables = []
        for name, part in parts:
            table = pd.DataFrame(self._rows(str(name), part))
            tables.append(table.assign(q=false_discovery(np.array(table.p, dtype=float))))
        return pd.concat(tables, ignore_index=True)

    def _rows(self, region: str, frame: pd.DataFrame) -> Sequence[dict]:
        rows = []
        plain = frame[frame.condition == UNDISTURBED.name].set_index(["region", "start"])
        for name, mine in frame.groupby("condition", sort=False):
            mine = mine.set_index(["region", "start"])
            own = plain.loc[mine.index]
            n, successes = len(mine), int(mine.success.sum())
            low, high = wilson(successes, n)
            worse = (mine.tip_error_mm - own.tip_error_mm).to_numpy()
            paired = paired_success(_outcome(own), _outcome(mine))
            other = name != UNDISTURBED.name
            rows.append(
                {
                    "region": region,
                    "condition": name,
                    "rollouts": n,
                    "successes": successes,
                    "success": successes / n,
                    "success_low": low,
                    "success_high": high,
                    "closed": int(mine.closed.sum()),
                    "lost": paired.lost if other else np.nan,
                    "gained": paired.gained if other else np.nan,
                    "success_change": paired.change if other else np.nan,
                    "success_change_low": paired.low if other else np.nan,
                    "success_change_high": paired.high if other else np.nan,
                    "p": paired.p if other else np.nan,
                    "tip_error_mm": float(mine.tip_error_mm.median()),
                    **pooled_columns("tip_error_change_mm", worse, np.ones(n), seed=self.seed),
                    **pooled_columns(
                        "path_mm", mine.path_mm.to_numpy(), np.ones(n), seed=self.seed
                    ),
                }
            )
        return rows


def _outcome(frame: pd.DataFrame) -> Bool[np.ndarray, " start"]:
    return frame.success.to_numpy(dtype=bool)
