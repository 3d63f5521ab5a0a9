"""One scene's forward pass, kept: the base that interventions start from, or a donor."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.errors import InterventionError
from actlens.interventions.network import QUERY_POS, TOKEN_POS, network
from actlens.interventions.softmax_update import BaseAttention
from actlens.model.act import HookedACT
from actlens.scene import Observation, Scene


class SceneRun(Mapping[str, Tensor]):
    """The activations of one forward by hook name, each with a batch axis of one.

    What a forward does not keep (attention scores, per-head writes, LayerNorm internals) is derived
    from the model's weights when it is asked for, and then kept.
    """

    def __init__(
        self, activations: Mapping[str, Float[Tensor, "1 ..."]], model: HookedACT | None = None
    ):
        self._activations = dict(activations)
        self._model = model
        self._attentions: dict[str, BaseAttention] = {}
        self._halves: dict[str, Tensor] = {}

    @property
    def actions(self) -> Float[Tensor, "chunk joint"]:
        """The normalised action chunk."""
        return self["hook_actions_normalized"][0]

    @torch.no_grad()
    def attention(self, prefix: str) -> BaseAttention:
        """An attention's activations in the form in which updates read them; computed once."""
        if prefix not in self._attentions:
            names = (f"{prefix}.hook_{name}" for name in ("q", "k", "v", "z", "pattern"))
            self._attentions[prefix] = BaseAttention.of(*(self[name] for name in names))
        return self._attentions[prefix]

    def in_half(self, name: str) -> Float[Tensor, "1 ..."]:
        """An activation in bfloat16; cast once."""
        if name not in self._halves:
            self._halves[name] = self[name].bfloat16()
        return self._halves[name]

    @torch.no_grad()
    def __getitem__(self, name: str) -> Float[Tensor, "1 ..."]:
        if name not in self._activations:
            if self._model is None or name not in self._model.hook_dict:
                raise KeyError(name)
            op = next(op for op in network(self._model, (name,)) if op.output == name)
            assert op.compute is not None
            self._activations[name] = op.compute(*(self[given] for given in op.inputs))
        return self._activations[name]

    def __contains__(self, name: object) -> bool:
        if name in self._activations:
            return True
        return self._model is not None and name in self._model.hook_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)


@torch.no_grad()
def run_scene(model: HookedACT, observation: Observation | Scene) -> SceneRun:
    """Run one observation and keep its activations, with the model's present weights.

    Raises:
        InterventionError: if the observation is a batch of several.
    """
    names = [
        name
        for name, point in model.hook_dict.items()
        if not (point.on_demand or name.startswith("vae.") or name.endswith("hook_attn_scores"))
    ]
    _, cache = model.run_with_cache(observation, names_filter=names)
    kept = dict(cache.activations)
    if len(kept["hook_actions"]) != 1:
        raise InterventionError("Interventions start from one scene at a time, not from a batch.")
    kept[TOKEN_POS] = kept[TOKEN_POS][None]
    kept[QUERY_POS] = model.decoder.query_pos.weight.detach()[None]
    return SceneRun(kept, model)


@torch.no_grad()
def mean_of(runs: Iterable[SceneRun], names: Iterable[str]) -> SceneRun:
    """The mean of several runs' activations at some hook points: the donor of mean ablation.

    Every run weighs the same: give as many per episode, since frames are not independent.

    Raises:
        InterventionError: if there is no run.
    """
    names, total, count = tuple(names), {}, 0
    for run in runs:
        count += 1
        for name in names:
            value = run[name].double()
            total[name] = total[name] + value if name in total else value
    if not count:
        raise InterventionError("The mean of no runs is not defined: give at least one scene.")
    return SceneRun({name: value / count for name, value in total.items()})
