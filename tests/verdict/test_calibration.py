"""What the calibration counts as right."""

import numpy as np
import pytest

from actlens.planted import Region
from benchmarks.verdict_calibration import _clear, _expected, by_kind, summary
from benchmarks.verdict_references import Setting, references

BASE = {
    "world": 0,
    "kind": "table, plateaus",
    "share": 1.0,
    "jump": 1.0,
    "inside": -1.0,
    "beyond": -1.0,
    "expected": "lookup table",
    "answer": "lookup table",
    "answers": {"100": "lookup table", "30": "undecided"},
    "clear": True,
    "site": "decoder MLP",
    "in_encoder": False,
    "covered_inside": [38, 40],
    "covered_beyond": [39, 40],
    "covered_jump": [0, 0],
}
RULE = BASE | {
    "kind": "smooth rule",
    "share": 0.0,
    "jump": 0.1,
    "expected": "general rule",
    "site": "",
    "covered_jump": [19, 20],
}


def rule(answer, **more):
    return RULE | {"answer": answer, "answers": {"100": answer, "30": answer}} | more


def test_rights_and_wrongs_are_counted_as_by_hand():
    rows = [
        BASE,
        rule("general rule"),
        rule("undecided"),  # clear: wrong
        rule("undecided", clear=False),  # right
        rule("lookup table"),
        {"world": 0, "kind": "table in encoder", "refused": "no room"},
    ]
    found = summary(rows)
    assert (found["policies"], found["refused"]) == (5, 1)
    assert found["right"]["n"] == 3
    assert found["right, by unseen episodes"]["30"]["n"] == 2  # the table was undecided there
    assert (found["right where clear"]["n"], found["right where clear"]["of"]) == (2, 4)
    assert found["wrong, not undecided"]["n"] == 1
    assert (found["lookup said of rules"]["n"], found["lookup said of rules"]["of"]) == (1, 4)
    assert found["site right"] == {
        "n": 1,
        "of": 1,
        "interval": pytest.approx((0.2065, 1.0), abs=1e-3),
    }
    assert found["coverage"]["inside"]["share"] == pytest.approx(0.95)
    assert found["coverage"]["jump"] == {"held": 76, "of": 80, "share": 0.95}
    assert by_kind(rows).row_count == 2


@pytest.mark.parametrize(
    ("inside", "beyond", "share", "expected"),
    [
        (-1.0, -1.0, 0.9, "lookup table"),
        (0.2, 0.9, 0.1, "smooth memoriser"),
        (0.9, 0.2, 0.0, "interpolator"),
        (0.9, 0.8, 0.0, "general rule"),
        (0.9, 0.8, 0.9, "undecided"),
        (np.nan, np.nan, 0.9, "undecided"),
    ],
)
def test_the_truth_is_what_the_verdict_would_be_if_all_were_known(inside, beyond, share, expected):
    assert _expected(inside, beyond, share) == expected


def test_what_data_cannot_tell_is_not_held_against_the_verdict():
    at = lambda inside, error, beyond=1.0: {
        Region.GAP: (inside, error),
        Region.OUTSIDE: (beyond, 0.02),
    }
    assert _clear(at(0.9, 0.02), 0.0)
    assert not _clear(at(0.9, 0.3), 0.0)  # 1.3 standard errors off
    assert not _clear(at(0.6, 0.01), 0.0)  # too near by itself
    assert not _clear(at(0.9, 0.02, beyond=0.45), 0.0)
    assert _clear(at(0.1, 0.02, beyond=0.45), 0.0)  # what lies beyond does not matter there
    assert not _clear(at(0.1, 0.02), 0.55)
    assert not _clear(at(np.nan, np.nan), 0.0)


def test_worlds_have_one_policy_of_every_kind_and_are_made_from_their_number_alone():
    names = [kind for kind, _ in references(Setting(7))]
    assert len(names) == len(set(names)) == 18
    makes = dict(references(Setting(7)))
    first, again = (makes["smooth rule"]() for _ in range(2))
    scene = first.shown[3]
    assert (first.model(scene) == again.model(scene)).all()
    for taught, own in zip(first.shown, Setting(7).scenes, strict=True):
        assert np.allclose(taught.action, own.action, atol=1e-4)
    exchanged = makes["shuffled memoriser"]().shown
    assert not any(
        np.allclose(taught.action, own.action, atol=1e-4)
        for taught, own in zip(exchanged, Setting(7).scenes, strict=True)
    )
