"""Frozen dataclasses to bytes and back: numbers and arrays to the bit, and nothing executed.

The bytes are a safetensors file. Its one entry of metadata holds, as JSON, the key of the unit, a
checksum over everything, and the dataclass with arrays replaced by their names. Equal records give
equal bytes, so that files can be compared as files.
"""

import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from actlens.shards.errors import RunError
from actlens.shards.keys import canonical
from actlens.text import quoted

T = TypeVar("T")
Arrays = dict[str, np.ndarray]

_METADATA = "actlens.unit"
_FORMAT = 1
_ARRAY, _FLOAT = "$array", "$float"
_LARGEST_HEADER = 100 * 2**20


def encode(record: Any, *, key: str) -> bytes:
    """A frozen dataclass as a checksummed safetensors file.

    Fields may be JSON's types, paths, enums, numpy arrays, and dataclasses, sequences and mappings
    of those; floats need not be finite.

    Raises:
        TypeError: if a field holds anything else.
    """
    arrays: Arrays = {}
    tree = to_tree(record, arrays)
    content = {"format": _FORMAT, "key": key, "record": tree}
    content["sha256"] = _checksum(content, arrays)
    # One entry only: the order of several is not defined, and equal records must be equal files.
    return save(arrays, metadata={_METADATA: canonical(content)})


def decode(cls: type[T], content: bytes, *, key: str, where: object) -> T:
    """The record in a file's bytes, if they are whole and belong to the unit of that key.

    Raises:
        RunError: if they are truncated, damaged, of another unit, or of another kind of record.
    """
    tree, arrays = _checked(content, key, where)
    try:
        return from_tree(cls, tree, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise RunError(f"{where} holds another kind of record ({quoted(problem)}).") from problem


def check(content: bytes, *, key: str, where: object) -> None:
    """Whether bytes are a whole record of the unit of that key.

    Raises:
        RunError: if they are not.
    """
    _checked(content, key, where)


def _checked(content: bytes, key: str, where: object) -> tuple[Any, Arrays]:
    try:
        length = int.from_bytes(content[:8], "little")
        if length > min(_LARGEST_HEADER, len(content) - 8):
            raise ValueError(f"{len(content)} bytes are too few for its header")
        header = json.loads(content[8 : 8 + length])
        stored = json.loads(header["__metadata__"][_METADATA])
        arrays = load(content)
        stated = stored.pop("sha256")
        actual = _checksum(stored, arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise RunError(f"{where} is damaged ({quoted(e)}).") from e
    if stated != actual:
        raise RunError(f"{where} is damaged: its checksum does not fit what it holds.")
    if stored.get("format") != _FORMAT:
        raise RunError(f"{where} has version {quoted(stored.get('format'))} of the format.")
    if stored.get("key") != key:
        raise RunError(f"{where} belongs to another unit, {quoted(stored.get('key'))}.")
    return stored["record"], arrays


def _checksum(content: Mapping[str, Any], arrays: Arrays) -> str:
    digest = hashlib.sha256(canonical(content).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def to_tree(value: Any, arrays: Arrays | None = None, name: str = "") -> Any:
    """A value in JSON's types; arrays go to `arrays` under the path of their field.

    Raises:
        TypeError: if it holds something that `from_tree` could not give back.
    """
    inner = lambda part, value: to_tree(value, arrays, f"{name}.{part}" if name else str(part))
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            return float(value) if math.isfinite(value) else {_FLOAT: str(float(value))}
        case np.integer() | np.bool_():
            return value.item()
        case Path():
            return str(value)
        case np.ndarray() if arrays is not None:
            arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
            return {_ARRAY: name}
        case Mapping():
            tree = {}
            for key, part in value.items():
                key = key.value if isinstance(key, Enum) else key
                if not isinstance(key, str) or key.startswith("$"):
                    raise TypeError(f"{name or 'the record'}: {key!r} cannot be a key.")
                tree[key] = inner(key, part)
            return tree
        case list() | tuple():
            return [inner(i, part) for i, part in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: inner(field.name, getattr(value, field.name)) for field in fields(value)
        }
    raise TypeError(f"{name or 'the record'}: a {type(value).__name__} cannot be stored.")


def from_tree(hint: Any, tree: Any, arrays: Mapping[str, np.ndarray] | None = None) -> Any:
    """What `to_tree` took apart, put together again as the type says.

    Raises:
        KeyError, TypeError, ValueError: if the tree is of another type.
    """
    if isinstance(tree, dict) and tree.keys() == {_ARRAY}:
        return (arrays or {})[tree[_ARRAY]]
    if isinstance(tree, dict) and tree.keys() == {_FLOAT}:
        return float(tree[_FLOAT])
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if tree is None and types.NoneType in args:
            return None
        return from_tree(_member(args, tree), tree, arrays)
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass(hint, tree, arrays)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        key, value = args
        return {_scalar(key, k): from_tree(value, part, arrays) for k, part in tree.items()}
    if origin is tuple and args[-1:] != (Ellipsis,):
        return tuple(from_tree(h, part, arrays) for h, part in zip(args, tree, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        parts = (from_tree(args[0], part, arrays) for part in tree)
        return list(parts) if origin is list else tuple(parts)
    return _scalar(hint, tree)


def _dataclass(cls: type, tree: Any, arrays: Mapping[str, np.ndarray] | None) -> Any:
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    if strange := tree.keys() - known.keys():
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(strange))}")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := set(needed) - tree.keys():
        raise ValueError(f"{cls.__name__} lacks {', '.join(sorted(missing))}")
    return cls(**{name: from_tree(hints[name], part, arrays) for name, part in tree.items()})


def _member(members: tuple[Any, ...], tree: Any) -> Any:
    """The member of a union that a tree stands for."""
    if isinstance(tree, dict):
        for member in members:
            if isinstance(member, type) and is_dataclass(member):
                if tree.keys() <= {field.name for field in fields(member)}:
                    return member
            elif typing.get_origin(member) is not None:
                return member
    plain = [member for member in members if member is not types.NoneType]
    exact = [member for member in plain if isinstance(member, type) and type(tree) is member]
    return (exact or plain)[0]


def _scalar(hint: Any, tree: Any) -> Any:
    if isinstance(hint, type):
        if issubclass(hint, Enum | Path):
            return hint(tree)
        if hint is float and type(tree) is int:
            return float(tree)
        if hint in (bool, int, float, str) and type(tree) is not hint:
            raise TypeError(f"{quoted(tree)} is no {hint.__name__}")
    return tree
