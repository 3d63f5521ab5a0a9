"""What a store will take is known before: held against shards, closed forms and the docs."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch

from actlens.store import scene_bytes, store_bytes, write_activations
from actlens.store.__main__ import SITES as TABLE_SITES
from actlens.store.__main__ import common_policy, main, markdown, rows
from tests.store.conftest import SITES, scenes

PAGE = Path(__file__).parents[2] / "docs/how-to/activation-store.md"


@pytest.fixture(scope="module")
def seed_policy():
    return common_policy()


def tensor_bytes(folder, addresses):
    """From the headers of the shards, read by hand."""
    total = 0
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        for address in addresses:
            begin, end = header[address]["data_offsets"]
            total += end - begin
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_size_is_that_of_the_shards(policy, tmp_path, dtype):
    sites = [*SITES, "encoder.*.hook_resid_pre", "decoder.0.cross_attn.hook_result"]
    store = write_activations(
        policy, scenes(5), sites, tmp_path / "acts", dtype=dtype, scenes_per_shard=2
    )
    predicted = store_bytes(policy, sites, 5, dtype)
    assert predicted == tensor_bytes(tmp_path / "acts", store.sites)
    assert predicted == sum(5 * dtype.itemsize * math.prod(store[s].shape[1:]) for s in store.sites)
    assert predicted == 5 * sum(scene_bytes(policy, sites, dtype).values())
    labels = 5 * (24 + 2 * 8 + 5 * (4 * 3 + 1))  # as the docstring says
    files = sum(path.stat().st_size for path in (tmp_path / "acts").glob("*.safetensors"))
    assert 0 < files - predicted - labels < 3 * 3000  # headers


def test_sizes_at_the_usual_size_are_the_closed_forms(seed_policy):
    numbers = {
        "decoder.0.hook_action_vector[query=0]": 512,
        "decoder.0.mlp.hook_post[query=0]": 3200,
        "decoder.0.hook_action_vector": 100 * 512,
        "decoder.0.cross_attn.hook_pattern": 8 * 100 * 602,
        "encoder.hook_out": 602 * 512,
        "encoder.*.hook_resid_pre": 3 * 602 * 512,
        "embed.top.hook_layer4": 512 * 15 * 20,
    }
    expected = {address: 2 * number for address, number in numbers.items()}
    assert scene_bytes(seed_policy, list(numbers)) == expected


def test_the_documentations_table_is_the_computed_one(seed_policy):
    assert markdown(rows(seed_policy, TABLE_SITES)) in PAGE.read_text(), (
        "paste what `python -m actlens.store` prints"
    )


def test_the_command_prints_the_table_of_a_policy(capsys):
    main(["--policy", "so101-pick-cube", "--sites", "decoder.0.mlp.hook_post[query=0]"])
    out = capsys.readouterr().out
    assert "| `decoder.0.mlp.hook_post[query=0]` | 2 KiB | 19.5 MiB | 1.91 GiB |" in out
    assert "everything, float32 (`cache_bytes()`)" in out
