"""The table's split: disjoint, with the declared shares, and sampled where it says."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlens.sim.regions import (
    COLUMNS,
    FIVE_POSITIONS,
    ROWS,
    STRIP_COLUMNS,
    X_MAX,
    X_MIN,
    Y_MAX,
    Y_MIN,
    Region,
    cell_of,
    cell_region,
    cells,
    region_of,
    sample,
)

ON_TABLE = (Region.TRAIN, Region.HELD_OUT, Region.STRIP)


def test_every_cell_belongs_to_one_region():
    listed = [cell for region in ON_TABLE for cell in cells(region)]
    assert len(listed) == len(set(listed)) == ROWS * COLUMNS


def test_a_quarter_of_the_cells_beside_the_strip_is_held_out():
    counts = {region: len(cells(region)) for region in ON_TABLE}
    assert counts == {Region.TRAIN: 27, Region.HELD_OUT: 9, Region.STRIP: 8}


def test_held_out_cells_are_surrounded_by_demonstrated_ones():
    for row, column in cells(Region.HELD_OUT):
        sides = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        around = Counter(cell_region(*side) for side in sides)
        assert around[Region.HELD_OUT] == 0
        assert around[Region.TRAIN] >= 3
        # Between two demonstrated cells along x or y, so that a point in it is interpolated.
        lines = (sides[:2], sides[2:])
        assert any(all(cell_region(*side) is Region.TRAIN for side in line) for line in lines)


def test_the_strip_is_the_side_of_the_largest_y():
    assert {column for _, column in cells(Region.STRIP)} == {COLUMNS - 2, COLUMNS - 1}
    widest = max(column for region in ON_TABLE[:2] for _, column in cells(region))
    assert widest == COLUMNS - STRIP_COLUMNS - 1


@pytest.mark.parametrize("region", ON_TABLE)
def test_samples_lie_in_their_region_and_fill_it(region):
    rng = np.random.default_rng(0)
    places = [sample(region, rng) for _ in range(500)]
    assert {region_of(*place) for place in places} == {region}
    assert {cell_of(*place) for place in places} == set(cells(region))


def test_sampling_repeats_with_its_generator():
    first, second = (sample(Region.TRAIN, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_nothing_can_be_sampled_outside():
    with pytest.raises(ValueError, match="choose TRAIN, HELD_OUT or STRIP"):
        sample(Region.OUTSIDE, np.random.default_rng(0))


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_position_is_outside_exactly_if_it_is_off_the_rectangle(x, y):
    inside = X_MIN + 1e-6 < x < X_MAX - 1e-6 and Y_MIN + 1e-6 < y < Y_MAX - 1e-6
    outside = not (X_MIN - 1e-6 < x < X_MAX + 1e-6 and Y_MIN - 1e-6 < y < Y_MAX + 1e-6)
    if inside:
        assert region_of(x, y) is not Region.OUTSIDE
    if outside:
        assert region_of(x, y) is Region.OUTSIDE


@pytest.mark.parametrize("row", range(ROWS))
@pytest.mark.parametrize("column", range(COLUMNS))
def test_a_cells_lower_corner_belongs_to_it(row, column):
    assert cell_of(X_MIN + row * 0.025, Y_MIN + column * 0.025) == (row, column)


def test_the_five_positions_are_demonstrated_cells_centres():
    assert len(set(FIVE_POSITIONS)) == 5
    assert {region_of(*place) for place in FIVE_POSITIONS} == {Region.TRAIN}
    for x, y in FIVE_POSITIONS:
        assert ((x - X_MIN) / 0.025) % 1 == pytest.approx(0.5)
        assert ((y - Y_MIN) / 0.025) % 1 == pytest.approx(0.5)
