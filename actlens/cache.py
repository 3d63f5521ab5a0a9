"""What one forward pass left at the hook points that were asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actlens.errors import HookNameError
from actlens.hooks import GRAD_SUFFIX, HookPoint, did_you_mean
from actlens.sites import parse_where, split_address
from actlens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class ActivationCache(Mapping[str, Tensor]):
    """A read-only mapping from hook-point names to activations.

    Keys may be exact names, aliases, addresses of parts (`decoder.0.mlp.hook_post[1234]`,
    `encoder.1.hook_resid_pre[state]`), gradients (`name + "_grad"`), or TransformerLens' tuples
    `("pattern", 0)` and `("pattern", 0, "cross_attn")`, layer counted from the end if negative.
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
        name = self.aliases.get(name, name)
        if name not in self.activations:
            known = [*self.activations, *self.aliases]
            kept = name in self.points
            raise HookNameError(
                f"{name!r} was not cached."
                + (" Add it to names_filter." if kept else did_you_mean(name, known))
            )
        activation = self.activations[name]
        if not selectors:
            return activation
        point = self.points[name.removesuffix(GRAD_SUFFIX)]
        index = point.index(parse_where(selectors, point, self.tokens))
        dropped = not self.has_batch_dim and point.axes[0] == "batch"
        return activation[index[1:] if dropped else index]

    def _from_tuple(self, key: tuple) -> str:
        leaf, layer, *part = key
        wanted = leaf if leaf.startswith("hook_") else f"hook_{leaf}"
        matches = []
        for name in self.activations:
            pieces = name.split(".")
            if pieces[-1] != wanted or (part and part[0] not in pieces):
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
            what = f"matches {', '.join(matches)}" if matches else "matches nothing that was cached"
            raise HookNameError(
                f"{key!r} {what}; add the part as a third entry (encoder, attn, cross_attn, "
                "decoder) or use the full name."
            )
        return matches[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def axes(self, name: str) -> tuple[str, ...]:
        """The names of an activation's axes."""
        axes = self.points[self.aliases.get(name, name).removesuffix(GRAD_SUFFIX)].axes
        return axes[1:] if axes[:1] == ("batch",) and not self.has_batch_dim else axes

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
        """Memory of the distinct tensors held, in bytes."""
        distinct = {(t.data_ptr(), t.shape): t for t in self.activations.values()}
        return sum(t.numel() * t.element_size() for t in distinct.values())
