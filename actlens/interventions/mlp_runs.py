"""Forwards of scenes, kept at one MLP: its keys, its output, and the rest of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.errors import SceneError
from actlens.interventions.evaluate import steps
from actlens.interventions.network import ACTIONS, QUERY_POS, TOKEN_POS, Op, network
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene, stack

_BATCH = 8


@dataclass(frozen=True)
class Rest:
    """The network behind an MLP's output, from the output of some units to their actions.

    A unit is what can be computed by itself: one chunk position where nothing mixes positions any
    more (behind the last decoder MLP), a whole scene elsewhere. The operations are the intervention
    engine's, with the model's own weights; gradients pass through them.
    """

    ops: tuple[Op, ...]
    start: str
    given: Mapping[str, Float[Tensor, "unit position ..."]]
    """What the operations read that the MLP's output does not change."""

    @property
    def positionwise(self) -> bool:
        """Whether every position of the output depends on that position of the actions alone."""
        return all(op.positionwise for op in self.ops)

    def __call__(
        self, output: Float[Tensor, "unit position d_model"]
    ) -> Float[Tensor, "unit chunk joint"]:
        """Normalised actions."""
        values = dict(self.given) | {self.start: output}
        for op in self.ops:
            assert op.compute is not None
            values[op.output] = op.compute(*(values[name] for name in op.inputs))
        return values[ACTIONS]

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


@dataclass(frozen=True)
class MLPRuns:
    """What an edit of one MLP's output weights needs to know of some scenes; nothing else is run.

    With it the actions under any edit cost what lies behind the MLP, not a forward.
    """

    site: MLPSite
    keys: Float[Tensor, "scene position neuron"]
    """What the MLP's output weights read."""
    output: Float[Tensor, "scene position d_model"]
    """What they and the bias make of it."""
    actions: Float[Tensor, "scene chunk joint"]
    """Normalised, without any edit."""
    rest: Rest

    @classmethod
    def of(cls, model: HookedACT, site: MLPSite, scenes: Sequence[Scene]) -> Self:
        """Run the scenes, with the model's present weights.

        Raises:
            SceneError: if there is no scene, or one does not fit the policy.
        """
        (runs,) = cls.of_sites(model, [site], scenes)
        return runs

    @classmethod
    @torch.no_grad()
    def of_sites(
        cls, model: HookedACT, sites: Sequence[MLPSite], scenes: Sequence[Scene]
    ) -> tuple[Self, ...]:
        """The same forwards kept at several MLPs, one value for each.

        Raises:
            SceneError: if there is no scene, or one does not fit the policy.
        """
        if not scenes:
            raise SceneError("There is no scene to run.")
        behind = [_behind(model, site) for site in sites]
        read = dict.fromkeys(name for _, names in behind for name in names)
        own = dict.fromkeys(name for site in sites for name in (site.keys, site.output))
        names = [name for name in (*(read | own), ACTIONS) if name != QUERY_POS]
        parts = []
        for start in range(0, len(scenes), _BATCH):
            batch = stack(scenes[start : start + _BATCH])
            parts.append(model.run_with_cache(batch, names_filter=names)[1])
        kept = {
            name: parts[0][name][None]
            if name == TOKEN_POS
            else torch.cat([part[name] for part in parts])
            for name in names
        }
        if QUERY_POS in read:
            kept[QUERY_POS] = model.decoder.query_pos.weight.detach()[None]
        return tuple(
            cls(
                site,
                kept[site.keys],
                kept[site.output],
                kept[ACTIONS],
                Rest(ops, site.output, {name: kept[name] for name in names}),
            )
            for site, (ops, names) in zip(sites, behind, strict=True)
        )

    def of_scenes(self, chosen: Sequence[int]) -> "MLPRuns":
        """Some of the scenes."""
        at = torch.tensor(chosen, device=self.keys.device)
        parts = (self.keys[at], self.output[at], self.actions[at])
        return MLPRuns(self.site, *parts, self.rest.of(at))

    @torch.no_grad()
    def actions_with(
        self, written: Float[Tensor, "scene position d_model"]
    ) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions if something more is written at the MLP's output."""
        return self.rest(self.output + written.to(self.output))


@torch.no_grad()
def keys_in(
    model: HookedACT, site: MLPSite, scenes: Sequence[Scene]
) -> Float[Tensor, "scene position neuron"]:
    """The MLP's keys in some scenes, and nothing else of them."""
    parts = []
    for start in range(0, len(scenes), _BATCH):
        batch = stack(scenes[start : start + _BATCH])
        parts.append(model.run_with_cache(batch, names_filter=site.keys)[1][site.keys])
    return torch.cat(parts)


def _behind(model: HookedACT, site: MLPSite) -> tuple[tuple[Op, ...], tuple[str, ...]]:
    """The operations behind an MLP's output, and what they read that it does not change."""
    chosen = steps(network(model, {site.output}), {site.output}, {ACTIONS})
    ops = tuple(op for op in chosen if op.output != site.output)
    made = {site.output, *(op.output for op in ops)}
    return ops, tuple(dict.fromkeys(x for op in ops for x in op.inputs if x not in made))
