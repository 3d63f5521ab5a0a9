"""The network behind some hook points, and what scenes hold where it begins.

The operations are the intervention engine's with the model's own weights, so that nothing of the
model is written down twice; gradients pass through them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.evaluate import steps
from actlens.interventions.network import ACTIONS, QUERY_POS, TOKEN_POS, Op, network
from actlens.model.act import HookedACT
from actlens.scene import Scene, stack

_BATCH = 8


@dataclass(frozen=True)
class Rest:
    """The network behind a hook point, from what it holds in some units to their actions.

    A unit is what can be computed by itself: one chunk position where nothing mixes positions any
    more (behind the last decoder MLP), a whole scene elsewhere.
    """

    ops: tuple[Op, ...]
    start: str
    given: Mapping[str, Float[Tensor, "unit position ..."]]
    """What the operations read that does not depend on the start."""

    @classmethod
    def behind(cls, model: HookedACT, start: str, kept: Mapping[str, Tensor]) -> "Rest":
        """Of scenes that were run.

        Args:
            kept: `activations` of these scenes at `inputs_behind(model, start)`, or more.
        """
        ops = operations(model, {start})
        return cls(ops, start, {name: kept[name] for name in read_by(ops, start)})

    @property
    def positionwise(self) -> bool:
        """Whether every position of the output depends on that position of the actions alone."""
        return all(op.positionwise for op in self.ops)

    def __call__(
        self, output: Float[Tensor, "unit position d_model"]
    ) -> Float[Tensor, "unit chunk joint"]:
        """Normalised actions."""
        return actions_of(self.ops, dict(self.given) | {self.start: output})

    def at(self, scene: Int[Tensor, " unit"], position: Int[Tensor, " unit"]) -> "Rest":
        """Single positions as units of their own; only where nothing mixes positions."""
        assert self.positionwise
        return Rest(
            self.ops, self.start, {k: v[scene, position][:, None] for k, v in self.given.items()}
        )

    def of(self, scenes: Int[Tensor, " unit"]) -> "Rest":
        """Some of the scenes."""
        return Rest(
            self.ops,
            self.start,
            {k: v if len(v) == 1 else v[scenes] for k, v in self.given.items()},
        )


def operations(model: HookedACT, starts: Collection[str]) -> tuple[Op, ...]:
    """What leads from some hook points, given what they hold, to the actions."""
    chosen = steps(network(model, starts), starts, {ACTIONS})
    return tuple(op for op in chosen if op.output not in starts)


def read_by(ops: Sequence[Op], *starts: str) -> tuple[str, ...]:
    """What operations read that neither they nor the starts give."""
    made = {*starts, *(op.output for op in ops)}
    return tuple(dict.fromkeys(x for op in ops for x in op.inputs if x not in made))


def inputs_behind(model: HookedACT, start: str) -> tuple[str, ...]:
    """What must be kept of scenes to go on from a hook point, besides what it holds itself."""
    return read_by(operations(model, {start}), start)


def actions_of(ops: Sequence[Op], values: dict[str, Tensor]) -> Float[Tensor, "unit chunk joint"]:
    """The normalised actions; `values` is filled on the way."""
    for op in ops:
        assert op.compute is not None
        values[op.output] = op.compute(*(values[name] for name in op.inputs))
    return values[ACTIONS]


@torch.no_grad()
def activations(
    model: HookedACT,
    scenes: Sequence[Scene],
    names: Iterable[str],
    *,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> dict[str, Float[Tensor, "scene ..."]]:
    """What some hook points hold in every scene; one row for what is the same in all.

    Args:
        names: hook points, and `QUERY_POS`.
        progress: told how many scenes were run, batch by batch.
    """
    wanted = list(dict.fromkeys(names))
    run = [name for name in wanted if name != QUERY_POS]
    parts = []
    for start in range(0, len(scenes), _BATCH):
        some = scenes[start : start + _BATCH]
        cache = model.run_with_cache(stack(some), names_filter=run)[1]
        parts.append({name: cache[name] for name in run})
        progress(len(some))
    kept = {
        name: parts[0][name][None]
        if name == TOKEN_POS
        else torch.cat([part[name] for part in parts])
        for name in run
    }
    if QUERY_POS in wanted:
        kept[QUERY_POS] = model.decoder.query_pos.weight.detach()[None]
    return kept
