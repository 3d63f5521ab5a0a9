"""Addresses of parts of activations: `decoder.0.mlp.hook_post[5]`, `encoder.1.hook_out[state]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from actlens.errors import HookNameError
from actlens.hooks import HookPoint
from actlens.tokens import TokenMap

Selection = int | slice | tuple[int, ...]
"""What is meant on one axis: an index, a span, or a set of indices."""
Where = Mapping[str, Selection]

# A selector is `axis=value` or a bare value; commas inside `top[3,7]` do not separate selectors.
_ENTRY = r"\w+\[[^\]]*\]|[\w:.\-]+"
_SELECTOR = re.compile(
    rf"(?:(?P<axis>\w+)\s*=\s*)?(?P<value>{_ENTRY}|\{{(?:(?:{_ENTRY})\s*,?\s*)*\}})\s*(?:,|$)\s*"
)
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


def _show(value: Selection) -> str:
    if isinstance(value, tuple):
        return "{" + ", ".join(map(str, value)) + "}"
    if isinstance(value, slice):
        return ":".join("" if end is None else str(end) for end in (value.start, value.stop))
    return str(value)


def split_address(address: str) -> tuple[str, str]:
    """`name[selectors]` -> (`name`, `selectors`); without brackets the second is empty."""
    name, bracket, rest = address.partition("[")
    if bracket and not rest.endswith("]"):
        raise HookNameError(f"{address!r} opens a bracket that it does not close.")
    return name.strip(), rest[:-1].strip() if bracket else ""


def parse_where(selectors: str, point: HookPoint, tokens: TokenMap) -> dict[str, Selection]:
    """The index by axis name that the selectors of an address stand for.

    `head=3`, `query=0:10`, `token=top[3,7]`, `joint=gripper` name their axis. A bare token name
    (`state`, `top[3,7]`, `top` for a whole camera) selects on the token axis (the attended one in
    attention patterns), a bare number on the last axis (the neuron in `mlp.hook_post`). Braces
    hold a set: `{state, top[3,7]}`, `head={0, 2}`.

    Raises:
        HookNameError: if an axis, token or joint does not exist, or the text is not understood.
    """
    where: dict[str, Selection] = {}
    at = 0
    while at < len(selectors):
        found = _SELECTOR.match(selectors, at)
        if found is None:
            raise HookNameError(f"{point.name}[{selectors}]: {selectors[at:]!r} is not a selector.")
        at = found.end()
        text = found["value"]
        entries = re.findall(_ENTRY, text[1:-1]) if text.startswith("{") else [text]
        if not entries:
            raise HookNameError(f"{point.name}[{selectors}]: an empty set selects nothing.")
        axis = found["axis"] or _axis_meant(entries[0], point)
        if axis in where:
            raise HookNameError(f"{point.name}[{selectors}] selects twice on axis {axis!r}.")
        chosen = [_on_axis(entry, axis, point, tokens) for entry in entries]
        where[axis] = chosen[0] if not text.startswith("{") else _union(chosen, axis, point)
    point.index(where)  # raises where an axis does not exist
    return where


def _axis_meant(entry: str, point: HookPoint) -> str:
    """The axis that an entry without `axis=` selects on."""
    if re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?", entry):
        return point.axes[-1]
    on_tokens = [axis for axis in point.axes if axis in _TOKEN_AXES]
    if not on_tokens:
        raise HookNameError(
            f"{point.name} has axes ({', '.join(point.axes)}); none of them holds tokens, "
            f"so {entry!r} selects nothing."
        )
    return on_tokens[-1]


def _on_axis(entry: str, axis: str, point: HookPoint, tokens: TokenMap) -> int | slice:
    """The index or span that one entry stands for."""
    if re.fullmatch(r"-?\d+", entry):
        return int(entry)
    if span := re.fullmatch(r"(-?\d+)?:(-?\d+)?", entry):
        return slice(*(int(x) if x else None for x in span.groups()))
    if axis in _TOKEN_AXES:
        return tokens.index(entry)
    if axis == "joint" and entry in tokens.config.joints:
        return tokens.config.joints.index(entry)
    named = f" or one of {', '.join(tokens.config.joints)}" if axis == "joint" else ""
    raise HookNameError(
        f"{point.name}: {entry!r} is no index on axis {axis!r}: "
        f"use a number or a span such as 0:10{named}."
    )


def _union(chosen: list[int | slice], axis: str, point: HookPoint) -> tuple[int, ...]:
    """The entries of a set as indices, each once, in the order in which they were named."""
    indices: dict[int, None] = {}
    for part in chosen:
        if isinstance(part, int):
            indices[part] = None
            continue
        span = () if None in (part.start, part.stop) else range(part.start, part.stop)
        if not span:
            raise HookNameError(
                f"{point.name}: spans in a set on axis {axis!r} need both ends, the second larger."
            )
        indices |= dict.fromkeys(span)
    return tuple(indices)
