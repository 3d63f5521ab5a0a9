"""Addresses of parts of activations: `decoder.0.mlp.hook_post[5]`, `encoder.1.hook_out[state]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from actlens.errors import HookNameError
from actlens.hooks import HookPoint
from actlens.tokens import TokenMap

Where = Mapping[str, int | slice]

# A selector is `axis=value` or a bare value; commas inside `top[3,7]` do not separate selectors.
_SELECTOR = re.compile(r"(?:(?P<axis>\w+)\s*=\s*)?(?P<value>\w+\[[^\]]*\]|[\w:.\-]+)\s*(?:,|$)\s*")
_TOKEN_AXES = ("token", "token_q", "token_k")


@dataclass(frozen=True)
class Site:
    """A hook point and the part of its activation that is meant, by axis name."""

    name: str
    where: Where = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.where:
            return self.name
        parts = (f"{axis}={_show(value)}" for axis, value in self.where.items())
        return f"{self.name}[{', '.join(parts)}]"


def _show(value: int | slice) -> str:
    if isinstance(value, slice):
        return ":".join("" if end is None else str(end) for end in (value.start, value.stop))
    return str(value)


def split_address(address: str) -> tuple[str, str]:
    """`name[selectors]` -> (`name`, `selectors`); without brackets the second is empty."""
    name, bracket, rest = address.partition("[")
    if bracket and not rest.endswith("]"):
        raise HookNameError(f"{address!r} opens a bracket that it does not close.")
    return name.strip(), rest[:-1].strip() if bracket else ""


def parse_where(selectors: str, point: HookPoint, tokens: TokenMap) -> dict[str, int | slice]:
    """The index by axis name that the selectors of an address stand for.

    `head=3`, `query=0:10`, `token=top[3,7]`, `joint=gripper` name their axis. A bare token name
    (`state`, `top[3,7]`, `top` for a whole camera) selects on the token axis (the attended one in
    attention patterns), a bare number on the last axis (the neuron in `mlp.hook_post`).

    Raises:
        HookNameError: if an axis, token or joint does not exist, or the text is not understood.
    """
    where: dict[str, int | slice] = {}
    at = 0
    while at < len(selectors):
        found = _SELECTOR.match(selectors, at)
        if found is None:
            raise HookNameError(f"{point.name}[{selectors}]: {selectors[at:]!r} is not a selector.")
        at = found.end()
        axis, text = found["axis"], found["value"]
        number = re.fullmatch(r"-?\d+", text)
        span = re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)
        if axis is None and (number or span):
            axis = point.axes[-1]
        elif axis is None:
            on_tokens = [a for a in point.axes if a in _TOKEN_AXES]
            if not on_tokens:
                raise HookNameError(
                    f"{point.name} has axes ({', '.join(point.axes)}); none of them holds tokens, "
                    f"so {text!r} selects nothing."
                )
            axis = on_tokens[-1]
        if axis in where:
            raise HookNameError(f"{point.name}[{selectors}] selects twice on axis {axis!r}.")
        if number:
            where[axis] = int(text)
        elif span:
            where[axis] = slice(*(int(x) if x else None for x in span.groups()))
        elif axis in _TOKEN_AXES:
            where[axis] = tokens.index(text)
        elif axis == "joint" and text in tokens.config.joints:
            where[axis] = tokens.config.joints.index(text)
        else:
            named = f" or one of {', '.join(tokens.config.joints)}" if axis == "joint" else ""
            raise HookNameError(
                f"{point.name}[{selectors}]: {text!r} is no index on axis {axis!r}: "
                f"use a number or a span such as 0:10{named}."
            )
    point.index(where)  # raises where an axis does not exist
    return where
