"""Cells of the table, starts in them, and means over them."""

import numpy as np
import pytest

from actlens.sim.regions import Region, cell_of, region_of, sample
from actlens.sim.table_map import CELLS, Cell, mean_by_cell, starts_by_cell


def test_starts_lie_in_their_cells_and_more_of_them_begin_alike():
    few, many = starts_by_cell(1, seed=4), starts_by_cell(3, seed=4)
    for cell, starts in many.items():
        assert {Cell(*cell_of(*start.cube_xy)) for start in starts} == {cell}
        assert {region_of(*start.cube_xy) for start in starts} == {cell.region}
        assert starts[:1] == few[cell]


def test_means_are_of_what_lies_in_a_cell():
    rng = np.random.default_rng(0)
    places = np.stack([sample(region, rng) for region in list(Region)[:3] * 20])
    values = rng.normal(size=len(places))
    found = mean_by_cell(places, values)
    assert set(found) == set(CELLS)
    assert len(CELLS) == 44
    for cell in CELLS:
        here = [v for p, v in zip(places, values, strict=True) if Cell(*cell_of(*p)) == cell]
        assert found[cell] == (pytest.approx(np.mean(here)) if here else None)


def test_places_off_the_table_belong_to_no_cell():
    assert set(mean_by_cell(np.array([[0.0, 0.0], [0.5, 0.5]]), np.ones(2)).values()) == {None}
