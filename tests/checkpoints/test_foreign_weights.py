"""Weights that are damaged, foreign or not this policy's are refused, the tensor named."""

import json
import random

import checkpoint_folders as folders
import pytest
import torch
from safetensors.torch import save_file

from actlens.checkpoints import load_checkpoint
from actlens.checkpoints.weights import read_header
from actlens.errors import CheckpointError

SAMPLE = sorted(folders.shapes())


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_deleted_tensor_is_named(name, folder):
    tensors = folders.weights()
    del tensors[name]
    folders.write_weights(folder, tensors)
    message = refusal(folder)
    assert "1 missing" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", SAMPLE[::3])
def test_a_renamed_tensor_is_named_with_what_it_should_be(name, folder):
    tensors = folders.weights()
    tensors[name + "_2"] = tensors.pop(name)
    folders.write_weights(folder, tensors)
    message = refusal(folder)
    assert "1 missing, 1 unexpected" in message
    assert f"Did you mean {name + '_2'!r}?" in message


@pytest.mark.parametrize("name", SAMPLE[::3])
def test_a_reshaped_tensor_is_named_with_both_shapes(name, folder):
    tensors = folders.weights()
    shape = tuple(tensors[name].shape)
    tensors[name] = torch.zeros(*shape, 1)
    folders.write_weights(folder, tensors)
    assert f"wrong shape {name!r}: expected {shape}, found {(*shape, 1)}" in refusal(folder)


def test_at_most_ten_differences_are_listed(folder):
    folders.write_weights(folder, {f"x{i}": torch.zeros(1) for i in range(30)})
    message = refusal(folder)
    assert len(message.splitlines()) == 12
    assert "… and " in message


def test_shapes_are_compared_before_any_tensor_is_read(folder, monkeypatch):
    import actlens.checkpoints.lerobot as lerobot

    def never(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(lerobot, "read_tensors", never)
    folders.edit_json(folder / "config.json", lambda config: config.update(dim_feedforward=4096))
    assert "wrong shape" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype, folder):
    tensors = folders.weights(dtype)
    tensors["encoder.layers.1.linear2.weight"][3, 4] = value
    folders.write_weights(folder, tensors)
    message = refusal(folder)
    assert "'encoder.layers.1.linear2.weight' holds 1 values that are NaN or infinite" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype, folder):
    tensors = folders.weights()
    tensors["action_head.bias"] = torch.zeros(2).to(dtype)
    folders.write_weights(folder, tensors)
    assert "weights must be float32, float16 or bfloat16" in refusal(folder)


def test_two_names_for_one_parameter_are_refused(folder):
    tensors = {f"model.{name}": tensor for name, tensor in folders.weights().items()}
    tensors["action_head.bias"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    assert "mean the same parameter" in refusal(folder)


def test_a_truncated_file_is_refused_with_its_size(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for keep in (0, 3, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        assert f"{keep} bytes" in refusal(folder)


def test_a_pickle_under_a_safetensors_name_is_called_one(folder):
    path = folder / "model.safetensors"
    torch.save(folders.weights(), path)
    assert "is a pickle under a safetensors name" in refusal(folder)


def test_a_git_lfs_pointer_is_called_one(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    )
    assert "git lfs pull" in refusal(folder)


def test_no_weights_at_all_are_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)


def test_peft_adapters_are_refused_as_such(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "PEFT adapters" in refusal(folder)
    (folder / "config.json").unlink()
    assert "PEFT adapters" in refusal(folder)


def test_distributed_shards_are_refused_as_such(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()
    assert "shards of a distributed checkpoint" in refusal(folder)


def test_a_folder_for_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "model.safetensors" in refusal(folder)


def mutate(content, rng):
    """One random damage: cut, flipped bytes in the header or the data, insertion, header edit."""
    n_header = int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(damaged[: rng.randrange(len(damaged))])
    if kind == 1:
        damaged[rng.randrange(8)] = rng.randrange(256)
    elif kind == 2:
        for _ in range(rng.randrange(1, 4)):
            damaged[8 + rng.randrange(n_header)] = rng.randrange(256)
    elif kind == 3:
        damaged[8 + n_header + rng.randrange(len(damaged) - 8 - n_header)] ^= 1 << rng.randrange(8)
    elif kind == 4:
        at = rng.randrange(len(damaged))
        damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        header = json.loads(content[8 : 8 + n_header])
        key = rng.choice([key for key in header if key != "__metadata__"])
        field = rng.choice(["dtype", "shape", "data_offsets"])
        header[key][field] = rng.choice(["I8", "F64", [1], [2**40], [0, 4], [-1, 8], None, []])
        encoded = json.dumps(header).encode()
        return len(encoded).to_bytes(8, "little") + encoded + content[8 + n_header :]
    return bytes(damaged)


def test_every_mutant_of_the_weights_is_refused_or_has_every_tensor(folder):
    """300 damaged files: a typed refusal, or all tensors with their shapes; never anything else."""
    rng = random.Random(0)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    expected = folders.shapes()
    refused = 0
    for _ in range(300):
        path.write_bytes(mutate(content, rng))
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError:
            refused += 1
            continue
        assert {name: tuple(t.shape) for name, t in checkpoint.weights.items()} == expected
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint.weights.values())
    assert refused > 150


def test_every_mutant_of_the_statistics_is_refused_or_complete(folder):
    rng = random.Random(1)
    path = folder / folders.PRE_STATE
    content = path.read_bytes()
    for _ in range(120):
        path.write_bytes(mutate(content, rng))
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError:
            continue
        assert checkpoint.normalization.keys() == {folders.STATE, folders.ENV, "action"}


def test_headers_name_shapes_and_dtypes_without_reading(folder):
    header = read_header(folder / "model.safetensors")
    assert header.shapes["model.action_head.weight"] == (2, 8)
    assert header.dtypes["model.action_head.weight"] == "F32"
