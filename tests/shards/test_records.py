"""Records: to the bit there and back, and nothing damaged is ever taken for whole."""

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Float32

from actlens.shards import RunError, decode, encode, from_tree, to_tree

KEY = "k" * 64


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    share: float
    count: int = 3


@dataclass(frozen=True)
class Outer:
    values: Float[np.ndarray, " part"]
    by: dict[Colour, Inner]
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    table: Float32[np.ndarray, "part joint"] | None = None
    number: float | None = None
    where: Path | None = None
    labels: dict[str, float] = field(default_factory=dict)
    size: tuple[int, int] = (1, 2)


def outer(**changes):
    full = Outer(
        np.array([1.0, -0.0, np.nan, np.inf, 5e-324]), {Colour.BLUE: Inner(0.1, 4)},
        (Inner(1 / 3), Inner(float("-inf"))), Inner(float("nan")),
        np.arange(6, dtype=np.float32).reshape(3, 2), 0.1 + 0.2, Path("a/b"), {"x": -0.0}, (3, 4),
    )  # fmt: skip
    return replace(full, **changes)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return type(b) is float and repr(a) == repr(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Inner | Outer):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    "record",
    [
        outer(),
        outer(maybe=None, table=None, number=None, where=None, several=()),
        outer(values=np.zeros((0,)), table=np.zeros((2, 0), np.float32)),
        outer(values=np.arange(12.0).reshape(3, 4).T),
        outer(values=np.array([True, False])),
        outer(values=np.array(7, dtype=np.int64)),
        outer(number=2.0),
    ],
    ids=["full", "absent", "empty", "strided", "bool", "scalar", "whole"],
)
def test_a_record_comes_back_to_the_bit(record):
    found = decode(Outer, encode(record, key=KEY), key=KEY, where="x")
    assert same(found, record)


@settings(max_examples=50)
@given(st.floats(), st.integers(-(2**63), 2**63), st.dictionaries(st.text(), st.floats()))
def test_any_number_and_any_name_comes_back(number, count, labels):
    labels = {name: value for name, value in labels.items() if not name.startswith("$")}
    record = outer(by={Colour.RED: Inner(number, count)}, labels=labels)
    found = decode(Outer, encode(record, key=KEY), key=KEY, where="x")
    assert same(found.by[Colour.RED], Inner(number, count))
    assert {n: repr(v) for n, v in found.labels.items()} == {n: repr(v) for n, v in labels.items()}


def test_equal_records_are_equal_bytes_in_whatever_order_they_were_filled():
    one = outer(labels={"a": 1.0, "b": 2.0})
    other = outer(labels={"b": 2.0, "a": 1.0}, values=one.values.copy())
    assert encode(one, key=KEY) == encode(other, key=KEY)


def test_fields_that_came_later_take_their_defaults_and_unknown_ones_are_refused():
    tree = to_tree(Inner(0.5))
    assert from_tree(Inner, {"share": 0.5}) == Inner(0.5)
    with pytest.raises(ValueError, match="has no colour"):
        from_tree(Inner, tree | {"colour": "red"})
    with pytest.raises(ValueError, match="lacks share"):
        from_tree(Inner, {"count": 1})


def test_what_could_not_be_read_again_is_not_written():
    with pytest.raises(TypeError, match="labels: 3 cannot be a key"):
        encode(outer(labels={3: 1.0}), key=KEY)
    with pytest.raises(TypeError, match="where: a set cannot be stored"):
        encode(outer(where={1}), key=KEY)


CONTENT = encode(outer(), key=KEY)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40, len(CONTENT) // 2, len(CONTENT) - 1])
def test_a_truncated_file_is_damaged(length):
    with pytest.raises(RunError, match=r"unit\.safetensors is damaged"):
        decode(Outer, CONTENT[:length], key=KEY, where="unit.safetensors")


def test_no_changed_byte_goes_unnoticed():
    unnoticed = []
    for position in range(len(CONTENT)):
        changed = bytearray(CONTENT)
        changed[position] ^= 1 << position % 8
        try:
            found = decode(Outer, bytes(changed), key=KEY, where="x")
        except RunError:
            continue
        if not same(found, outer()):
            unnoticed.append(position)
    assert not unnoticed


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_anything_else_is_refused_with_the_same_error(content):
    with pytest.raises(RunError, match="is damaged"):
        decode(Outer, content, key=KEY, where="x")


def test_another_units_file_and_another_kind_of_record_are_refused():
    with pytest.raises(RunError, match="belongs to another unit, 'kkk"):
        decode(Outer, CONTENT, key="j" * 64, where="x")
    with pytest.raises(RunError, match="another kind of record"):
        decode(Inner, CONTENT, key=KEY, where="x")
