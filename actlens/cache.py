"""What one forward pass left at the hook points that were asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actlens.errors import HookNameError
from actlens.hooks import GRAD_SUFFIX, HookPoint
from actlens.sites import parse_where, split_address
from actlens.text import did_you_mean
from actlens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[str, Tensor]):
    """A read-only mapping from hook-point names to activations.

    Keys may be exact names, aliases, addresses of parts (`decoder.0.mlp.hook_post[1234]`,
    `encoder.1.hook_resid_pre[state]`), gradients (`name + "_grad"`), or TransformerLens' tuples
    `("pattern", 0, "cross_attn")`: short name, layer (from the end if negative), then as many parts
    of the name (`encoder`, `decoder`, `attn`, `ln1`, …) as tell it from others.
    """

    activations: Mapping[str, Tensor]
    points: Mapping[str, HookPoint]
    aliases: Mapping[str, str]
    tokens: TokenMap
    has_batch_dim: bool = True

    def __getitem__(self, key: str | tuple) -> Tensor:
        if isinstance(key, tuple):
            key = self._from_tuple(key)
        name, selectors = split_address(key)
        name = self._canonical(name)
        if name not in self.activations:
            raise HookNameError(f"{name!r} was not cached.{self._how_to_cache(name)}")
        activation = self.activations[name]
        if not selectors:
            return activation
        point = self._point(name)
        where = parse_where(selectors, point, self.tokens)
        if self._lost_batch(point):
            if "batch" in where:
                raise HookNameError(f"{name} was cached without its batch axis.")
            return activation[point.index(where, (1, *activation.shape))[1:]]
        return activation[point.index(where, activation.shape)]

    def _canonical(self, name: str) -> str:
        """The name under which an alias, or the gradient at an alias, is stored."""
        bare = name.removesuffix(GRAD_SUFFIX)
        return self.aliases.get(bare, bare) + name[len(bare) :]

    def _point(self, name: str) -> HookPoint:
        bare = self._canonical(name).removesuffix(GRAD_SUFFIX)
        if bare not in self.points:
            raise HookNameError(f"{name!r} is not a hook point.{did_you_mean(bare, self.points)}")
        return self.points[bare]

    def _lost_batch(self, point: HookPoint) -> bool:
        return not self.has_batch_dim and point.axes[:1] == ("batch",)

    def _how_to_cache(self, name: str) -> str:
        if name in self.points:
            return " Add it to names_filter."
        bare = name.removesuffix(GRAD_SUFFIX)
        if bare != name and bare in self.points:
            return (
                " Gradients are kept by incl_bwd=True, where one arrives: none does at an input, "
                "or at anything computed from inputs alone."
            )
        return did_you_mean(name, [*self.activations, *self.aliases])

    def _from_tuple(self, key: tuple) -> str:
        if len(key) < 2:
            raise HookNameError(f"{key!r} needs a short name and a layer: ('pattern', 0).")
        leaf, layer, *parts = key
        wanted = leaf if leaf.startswith("hook_") else f"hook_{leaf}"
        matches = []
        stored = [alias for alias in self.aliases if self._canonical(alias) in self.activations]
        for name in [*self.activations, *stored]:
            pieces = name.split(".")
            if pieces[-1] != wanted or not set(parts) <= set(pieces):
                continue
            if len(pieces) < 3 or not pieces[1].isdigit():
                continue
            depth = 1 + max(
                int(other.split(".")[1])
                for other in self.points
                if other.startswith(f"{pieces[0]}.") and other.split(".")[1].isdigit()
            )
            if int(pieces[1]) == (layer + depth if layer < 0 else layer):
                matches.append(name)
        if len(matches) != 1:
            if not matches:
                raise HookNameError(f"{key!r} matches nothing that was cached.")
            raise HookNameError(
                f"{key!r} matches {', '.join(matches)}; add parts of the name (encoder, decoder, "
                "attn, cross_attn) until it matches one, or use the full name."
            )
        return matches[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def axes(self, name: str) -> tuple[str, ...]:
        """The names of an activation's axes."""
        point = self._point(name)
        return point.axes[1:] if self._lost_batch(point) else point.axes

    def to(self, device: torch.device | str) -> "ActivationCache":
        """The same cache on another device."""
        return replace(self, activations={k: v.to(device) for k, v in self.activations.items()})

    def remove_batch_dim(self) -> "ActivationCache":
        """The cache of a batch of one, without the batch axis.

        Raises:
            HookNameError: if an activation's batch is larger than one.
        """
        for name, value in self.activations.items():
            if self.has_batch_dim and self.axes(name)[:1] == ("batch",) and value.shape[0] != 1:
                raise HookNameError(f"{name} holds a batch of {value.shape[0]}, not of one.")
        squeezed = {
            name: value[0] if self.has_batch_dim and self.axes(name)[:1] == ("batch",) else value
            for name, value in self.activations.items()
        }
        return replace(self, activations=squeezed, has_batch_dim=False)

    @property
    def nbytes(self) -> int:
        """Memory that the activations keep alive, in bytes; shared memory counts once."""
        memory = (value.untyped_storage() for value in self.activations.values())
        return sum({part.data_ptr(): part.nbytes() for part in memory}.values())
