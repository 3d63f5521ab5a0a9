"""Edits as files, and edited policies as LeRobot checkpoints."""

import hashlib
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from actlens import HookedACT
from actlens.checkpoints import load_checkpoint
from actlens.errors import CheckpointError, HookNameError
from actlens.rome import (
    EditError,
    JointLimits,
    KeyMetric,
    Offset,
    Request,
    apply_edits,
    export_policy,
    key_statistics,
    load_edit,
    make_edit,
    model_card,
    save_edit,
)
from actlens.scene import Scene
from tests.rome.conftest import PAN, scene


@pytest.fixture(scope="module")
def edit(policy, metric):
    return make_edit(policy, [Request(scene(3), PAN), Request(scene(12), PAN)], metric)


def tensors(edit):
    return {name: getattr(edit, name) for name in ("left", "right", "keys")}


def test_a_saved_edit_comes_back_whole_and_works(policy, edit, tmp_path):
    back = load_edit(save_edit(edit, tmp_path / "edit"))
    assert all(torch.equal(value, tensors(edit)[name]) for name, value in tensors(back).items())
    nothing = dict.fromkeys(tensors(edit))
    assert replace(back, **nothing) == replace(edit, **nothing)
    assert torch.equal(back.delta, edit.delta)
    with back.apply(policy), pytest.raises(EditError, match="applied already"):
        edit.apply(policy)


def test_an_impossible_pair_survives_being_saved(policy, metric, edit, tmp_path):
    conflict = replace(edit.record, condition=float("inf"))
    back = load_edit(save_edit(replace(edit, record=conflict), tmp_path))
    assert back.record.condition == float("inf")


def test_damaged_and_hostile_files_are_refused(edit, tmp_path):
    folder = save_edit(edit, tmp_path / "edit")
    numbers, said = folder / "edit.safetensors", folder / "edit.json"
    good, text = numbers.read_bytes(), said.read_text()

    def with_json(**changes):
        said.write_text(json.dumps(json.loads(text) | changes))

    def with_tensors(**changes):
        content = safetensors.torch.save(
            {name: value.clone() for name, value in (tensors(edit) | changes).items()}
        )
        numbers.write_bytes(content)
        with_json(tensors_sha256=hashlib.sha256(content).hexdigest())

    numbers.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is not the file"):
        load_edit(folder)
    with_tensors(left=torch.zeros(7))
    with pytest.raises(EditError, match="should hold matrices"):
        load_edit(folder)
    with_tensors(more=torch.zeros(2, 2))
    with pytest.raises(EditError, match="should hold matrices called left, right, keys"):
        load_edit(folder)
    with_tensors(left=torch.zeros(32, 3))
    with pytest.raises(EditError, match="do not fit one another"):
        load_edit(folder)
    with_tensors(left=edit.left / 0)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load_edit(folder)
    numbers.write_bytes(good)
    for changes in (
        {"weights_sha256": "\x1b[31m"},
        {"weight_norm": None},
        {"record": {}},
        {"record": json.loads(text)["record"] | {"requests": [{"scene": "x"}]}},
        {"record": [1]},
    ):
        with_json(**changes)
        with pytest.raises(EditError) as error:
            load_edit(folder)
        assert "\x1b" not in str(error.value)
    numbers.write_bytes(b"\x80\x04pickled")
    said.write_text(text)
    with pytest.raises(CheckpointError, match="pickle"):
        load_edit(folder)


def test_an_edit_of_another_shape_or_block_is_refused_before_anything_changes(build, edit):
    model = build()
    before = model.decoder[0].mlp.linear2.weight.detach().clone()
    for wrong, error, message in (
        (replace(edit, right=edit.right[:, :-1]), EditError, "changes a matrix of"),
        (replace(edit, site=replace(edit.site, block="decoder.7")), HookNameError, "no block"),
    ):
        with pytest.raises(error, match=message):
            apply_edits(model, edit, replace(wrong, edited_sha256=""))
    assert torch.equal(model.decoder[0].mlp.linear2.weight, before)
    with pytest.raises(EditError, match="no edit to apply"):
        apply_edits(model)


# ── the bundled policy: limits, and a checkpoint that LeRobot could run ──────────────────────


@pytest.fixture(scope="module")
def bundled():
    return HookedACT.from_pretrained("so101-pick-cube")


def noisy(number):
    """Pictures of nothing, for which the policy nevertheless has an answer."""
    generator = torch.Generator().manual_seed(number)
    names = ("observation.images.top", "observation.images.lateral")
    observation = {
        name: torch.randint(0, 256, (3, 240, 320), generator=generator).to(torch.uint8)
        for name in names
    }
    state = torch.randn(6, generator=generator) * 20
    observation["observation.state"] = state
    spread = torch.tensor([40.0, 70.0, 60.0, 100.0, 60.0, 100.0])
    actions = torch.stack([-spread, spread]).repeat(25, 1)
    return Scene(observation, actions, episode=number, source="no|ise\x1b[2J")


@pytest.fixture(scope="module")
def bundled_metric(bundled):
    return KeyMetric.of(key_statistics(bundled, map(noisy, range(16)), "decoder.0"))


def test_targets_beyond_the_demonstrations_are_refused_unless_the_limits_say_so(
    bundled, bundled_metric
):
    high = float(bundled_metric.statistics.action_span[1, 0])
    beyond = high + 4 - float(bundled(noisy(3)).detach()[0, :10, 0].min())
    far = Request(noisy(3), Offset({"shoulder_pan.pos": beyond}))
    with pytest.raises(EditError, match=rf"shoulder_pan\.pos is .* span .* to {high:.4g}\."):
        make_edit(bundled, [far], bundled_metric)
    limits = JointLimits((-180.0,) * 6, (180.0,) * 6, "the arm reaches from")
    edit = make_edit(bundled, [far], bundled_metric, limits=limits)
    assert edit.record.requests[0].left_over < 0.01
    farther = replace(far, target=Offset({"shoulder_pan.pos": 300.0}))
    with pytest.raises(EditError, match="the arm reaches from -180 to 180"):
        make_edit(bundled, [farther], bundled_metric, limits=limits)


def test_joints_that_the_request_leaves_alone_may_be_anywhere(bundled, bundled_metric):
    present = bundled(noisy(3))[0].detach()
    low = present.min(0).values + 1  # every joint is outside now
    low[0] = -1000
    limits = JointLimits(tuple(low.tolist()), (1000.0,) * 6, "the arm reaches from")
    make_edit(
        bundled,
        [Request(noisy(3), Offset({"shoulder_pan.pos": 2.0}))],
        bundled_metric,
        limits=limits,
    )


def test_the_exported_policy_loads_again_and_acts_as_the_edited_one(
    bundled, bundled_metric, tmp_path
):
    before = {name: value.clone() for name, value in bundled.state_dict().items()}
    request = Request(noisy(3), Offset({"shoulder_pan.pos": -3.0}))
    edit = make_edit(bundled, [request], bundled_metric)
    folder = export_policy(bundled, [edit], tmp_path / "edited")
    assert all(torch.equal(v, before[name]) for name, v in bundled.state_dict().items())
    back = HookedACT.from_pretrained(folder)
    with edit.apply(bundled):
        for number in (3, 5):
            assert torch.equal(back(noisy(number)), bundled(noisy(number)))
    assert not torch.equal(back(noisy(3)), bundled(noisy(3)))
    weights = load_checkpoint(folder).weights
    assert weights["decoder.layers.0.linear2.weight"].dtype == torch.float32
    assert weights["encoder.layers.0.linear2.weight"].element_size() == 2
    with pytest.raises(EditError, match="applied already"):
        edit.apply(back)


def test_the_model_card_tells_the_edit_in_plain_characters(bundled, bundled_metric, tmp_path):
    request = Request(noisy(3), Offset({"shoulder_pan.pos": -3.0}))
    edit = make_edit(bundled, [request], bundled_metric)
    folder = export_policy(bundled, [edit], tmp_path / "edited")
    card = (folder / "README.md").read_text()
    assert card == model_card(bundled, [edit])
    assert "shoulder_pan.pos -3" in card
    assert "elbow" not in card
    assert "`decoder.0.mlp`" in card
    assert f"{edit.relative_norm:.3g} of the matrix's norm" in card
    assert edit.weights_sha256 in card
    assert "bundled:so101-pick-cube" in card
    assert "\x1b" not in card
    assert "| no/ise" in card
