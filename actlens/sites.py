"""Addresses of parts of activations: `decoder.0.mlp.hook_post[5]`, `encoder.1.hook_out[state]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from actlens.errors import HookNameError
from actlens.hooks import HookPoint
from actlens.tokens import PixelRect, TokenMap

Selection = int | slice | tuple[int, ...]
"""What is meant on one axis: an index, a span, or a set of indices."""
Where = Mapping[str, Selection]

# A selector is `axis=value` or a bare value; commas inside `top[3,7]` do not separate selectors.
_ENTRY = r"\w+\[[^\]]*\]|[\w:.\-]+"
_SELECTOR = re.compile(
    rf"(?:(?P<axis>\w+)\s*=\s*)?(?P<value>{_ENTRY}|\{{(?:(?:{_ENTRY})\s*,?\s*)*\}})\s*(?:,|$)\s*"
)
_NUMBERS = re.compile(r"(?P<number>-?\d+)|(?P<start>-?\d+)?:(?P<stop>-?\d+)?")
_TOKEN_AXES = ("pixel", "token", "token_q", "token_k")
_STRIDES = {"hook_image": 1, "hook_layer1": 4, "hook_layer2": 8, "hook_layer3": 16}
"""Pixels between neighbours in a camera's image and feature maps; in the last, those of tokens."""


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
    (`state`, `top[3,7]`, `top` for a whole camera, `top[2:5, 3:6]` for a region of it) selects on
    the token axis (the attended one in attention patterns), a bare number on the last axis (the
    neuron in `mlp.hook_post`). Braces hold a set: `{state, top[3,7]}`, `head={0, 2}`. In a camera's
    own image and feature maps, its tokens and regions stand for the entries in their cells:
    `embed.top.hook_layer3[channel=5, top[2:5, 3:6]]`.

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
        for axis, chosen in _selected(found["axis"], found["value"], point, tokens).items():
            if axis in where:
                raise HookNameError(f"{point.name}[{selectors}] selects twice on axis {axis!r}.")
            where[axis] = chosen
    point.index(where)  # raises where an axis does not exist
    return where


def _selected(
    axis: str | None, text: str, point: HookPoint, tokens: TokenMap
) -> dict[str, Selection]:
    """What one selector stands for, on the axis it names or means (two of them in maps)."""
    is_set = text.startswith("{")
    entries = re.findall(_ENTRY, text[1:-1]) if is_set else [text]
    if not entries:
        raise HookNameError(f"{point.name}[{text}]: an empty set selects nothing.")
    if axis is None and "height" in point.axes and not _NUMBERS.fullmatch(entries[0]):
        return _cells(text, point, tokens)
    axis = axis or _axis_meant(entries[0], point)
    chosen = [_on_axis(entry, axis, point, tokens) for entry in entries]
    return {axis: _union(chosen, axis, point) if is_set else chosen[0]}


def _axis_meant(entry: str, point: HookPoint) -> str:
    """The axis that an entry without `axis=` selects on."""
    if _NUMBERS.fullmatch(entry):
        return point.axes[-1]
    on_tokens = [axis for axis in point.axes if axis in _TOKEN_AXES]
    if not on_tokens:
        raise HookNameError(
            f"{point.name} has axes ({', '.join(point.axes)}); none of them holds tokens, "
            f"so {entry!r} selects nothing."
        )
    return on_tokens[-1]


def _on_axis(entry: str, axis: str, point: HookPoint, tokens: TokenMap) -> Selection:
    """The index, span or set that one entry stands for."""
    if found := _NUMBERS.fullmatch(entry):
        if found["number"]:
            return int(entry)
        return slice(*(int(x) if x else None for x in found.group("start", "stop")))
    if axis == "pixel":
        return _among_pixels(entry, point, tokens)
    if axis in _TOKEN_AXES:
        return tokens.index(entry)
    if axis == "joint" and entry in tokens.config.joints:
        return tokens.config.joints.index(entry)
    named = f" or one of {', '.join(tokens.config.joints)}" if axis == "joint" else ""
    raise HookNameError(
        f"{point.name}: {entry!r} is no index on axis {axis!r}: "
        f"use a number or a span such as 0:10{named}."
    )


def _own_rect(entry: str, point: HookPoint, tokens: TokenMap) -> PixelRect:
    """The pixels of an entry in the image of the camera whose hook point this is."""
    rect = tokens.rect(entry)
    if point.name is None or point.name.split(".")[-2:-1] != [rect.camera]:
        raise HookNameError(f"{point.name} belongs to another camera than {entry!r}.")
    return rect


def _cells(entry: str, point: HookPoint, tokens: TokenMap) -> dict[str, Selection]:
    """The rows and columns of a map that lie in the cells of a camera's tokens."""
    rect = _own_rect(entry, point, tokens)
    stride = _STRIDES.get((point.name or "").split(".")[-1], tokens.stride)
    return {
        "height": slice(rect.top // stride, -(-rect.bottom // stride)),
        "width": slice(rect.left // stride, -(-rect.right // stride)),
    }


def _among_pixels(entry: str, point: HookPoint, tokens: TokenMap) -> Selection:
    """The index or indices of an entry among one camera's tokens."""
    first = tokens.camera(_own_rect(entry, point, tokens).camera).start
    chosen = tokens.index(entry)
    if isinstance(chosen, slice):
        return slice(chosen.start - first, chosen.stop - first)
    return chosen - first if isinstance(chosen, int) else tuple(i - first for i in chosen)


def _union(chosen: list[Selection], axis: str, point: HookPoint) -> tuple[int, ...]:
    """The entries of a set as indices, each once, in the order in which they were named."""
    indices: dict[int, None] = {}
    for part in chosen:
        if isinstance(part, int | tuple):
            indices |= dict.fromkeys((part,) if isinstance(part, int) else part)
            continue
        span = () if None in (part.start, part.stop) else range(part.start, part.stop)
        if not span:
            raise HookNameError(
                f"{point.name}: spans in a set on axis {axis!r} need both ends, the second larger."
            )
        indices |= dict.fromkeys(span)
    return tuple(indices)
