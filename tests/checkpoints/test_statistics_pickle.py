"""Pickles run nothing here, whatever they ask for; real statistics load from every protocol."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import checkpoint_folders as folders
import numpy as np
import pytest
import torch

from actlens.checkpoints import load_checkpoint
from actlens.checkpoints.statistics_pickle import read_statistics_pickle
from actlens.errors import CheckpointError, UnsafeFileError

PROTOCOLS = range(6)


def raw(protocol, body):
    """A pickle from its instructions."""
    return (b"" if protocol < 2 else b"\x80" + bytes([protocol])) + body


def touching(marker, protocol):
    """Pickles that would create `marker`, each by another way; by name."""
    path = str(marker).encode()
    quoted = repr(str(marker)).encode()

    class Reduces:
        def __init__(self, function, *arguments):
            self.reduced = (function, arguments)

        def __reduce__(self):
            return self.reduced

    touch = Path(marker).touch
    return {
        "os.system": pickle.dumps(
            {"a": Reduces(__import__("os").system, f"touch {marker}")}, protocol
        ),
        "eval": pickle.dumps(
            {"a": Reduces(eval, f"__import__('os').mkdir({str(marker)!r})")}, protocol
        ),
        "exec": pickle.dumps(
            {"a": Reduces(exec, f"import os; os.mkdir({str(marker)!r})")}, protocol
        ),
        "os.mkdir": pickle.dumps({"a": Reduces(__import__("os").mkdir, str(marker))}, protocol),
        "bound method": pickle.dumps({"a": Reduces(touch)}, max(protocol, 2)),
        "global instruction": raw(protocol, b"cposix\nsystem\n(S'touch " + path + b"'\ntR."),
        "inst instruction": raw(protocol, b"(S'touch " + path + b"'\niposix\nsystem\n."),
        "obj instruction": raw(protocol, b"(cbuiltins\nopen\nS" + quoted + b"\nS'w'\no."),
        "numpy lookalike": raw(protocol, b"cnumpy.core.multiarray\nsystem\n(tR."),
        "numpy.load": raw(protocol, b"cnumpy\nload\n(S" + quoted + b"\ntR."),
        "numpy save": raw(protocol, b"cnumpy\nsave\n(S" + quoted + b"\nI1\ntR."),
        "dotted numpy": raw(
            max(protocol, 4),
            b"\x8c\x05numpy\x8c\x08ndarray.__class__\x93.".replace(b"\x08", b"\x11"),
        ),
    }


NAMES = sorted(touching(Path("x"), 2))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
def test_an_evil_statistics_pickle_never_runs(name, protocol, tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "dataset_stats.pkl"
    path.write_bytes(touching(marker, protocol)[name])
    with pytest.raises(CheckpointError, match=r"refused|is no pickled dictionary"):
        read_statistics_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "os.mkdir", "global instruction"])
def test_the_same_pickle_does_run_in_plain_pickle(name, protocol, tmp_path):
    """The positive control: the payloads above are live."""
    marker = tmp_path / "executed"
    pickle.loads(touching(marker, protocol)[name])
    assert marker.exists()


def containers(payload):
    """One evil pickle in every container that `torch.load` opens."""

    def zipped(name):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(f"{name}/data.pkl", payload)
            archive.writestr(f"{name}/version", "3\n")
            archive.writestr(f"{name}/byteorder", "little")
        return buffer.getvalue()

    legacy = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(header, legacy, protocol=2)
    return {
        "raw": payload,
        "zip": zipped("archive"),
        "legacy": legacy.getvalue() + payload + pickle.dumps([], protocol=2),
    }


@pytest.mark.parametrize("container", ["raw", "zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "os.mkdir", "global instruction"])
def test_an_evil_checkpoint_never_runs(name, protocol, container, tmp_path):
    marker = tmp_path / "executed"
    folder = folders.write_original(tmp_path / "p", {})
    path = folder / "policy_best.ckpt"
    path.write_bytes(containers(touching(marker, protocol)[name])[container])
    with pytest.raises(UnsafeFileError) as caught:
        load_checkpoint(folder, cameras=["top"])
    assert "nothing of it was run" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("container", ["raw", "zip", "legacy"])
def test_the_same_checkpoint_does_run_in_an_unsafe_load(container, tmp_path):
    """The positive control for the containers, by the way that actlens never takes."""
    marker = tmp_path / "executed"
    path = tmp_path / "policy_best.ckpt"
    path.write_bytes(containers(touching(marker, 2)["os.system"])[container])
    if container == "zip":
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read("archive/data.pkl"))
    else:
        with path.open("rb") as file:
            for _ in range(4 if container == "legacy" else 1):
                pickle.load(file)
    assert marker.exists()


def test_an_evil_pickle_under_a_safetensors_name_never_runs(folder, tmp_path):
    marker = tmp_path / "executed"
    for payload in containers(touching(marker, 2)["os.system"]).values():
        (folder / "model.safetensors").write_bytes(payload)
        with pytest.raises(CheckpointError):
            load_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_statistics_load_from_every_protocol(protocol, tmp_path):
    path = tmp_path / "dataset_stats.pkl"
    original = folders.original_statistics()
    path.write_bytes(pickle.dumps(original, protocol=protocol))
    loaded = read_statistics_pickle(path)
    assert loaded.keys() == original.keys()
    for name, array in original.items():
        assert loaded[name].dtype == torch.from_numpy(array).dtype
        assert np.array_equal(loaded[name].numpy(), array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("new", "old"), [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")]
)
def test_statistics_load_by_the_module_names_of_numpy_1_and_2(new, old, protocol, tmp_path):
    content = pickle.dumps(folders.original_statistics(), protocol=protocol)
    if protocol < 4:
        content = content.replace(old, new)
    else:
        for module in (b".multiarray", b".numeric"):
            before, after = old + module, new + module
            content = content.replace(
                b"\x8c" + bytes([len(before)]) + before, b"\x8c" + bytes([len(after)]) + after
            )
        # The frame's length no longer holds; a pickle without frames is as good.
        assert content[2:3] == b"\x95"
        content = content[:2] + content[11:]
    path = tmp_path / "dataset_stats.pkl"
    path.write_bytes(content)
    loaded = read_statistics_pickle(path)
    assert np.array_equal(loaded["qpos_mean"].numpy(), folders.original_statistics()["qpos_mean"])


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.float64(1.5),
        np.int64(3),
        1.5,
        3,
        np.arange(6).reshape(2, 3).T,
        np.arange(4, dtype=">f4"),
        np.zeros((0, 3)),
        np.arange(3, dtype=np.uint16),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array(2.0, np.float16),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_any_array_of_numbers_keeps_its_values(value, protocol, tmp_path):
    path = tmp_path / "stats.pkl"
    path.write_bytes(pickle.dumps({"a": value}, protocol=protocol))
    assert np.array_equal(read_statistics_pickle(path)["a"].numpy(), np.asarray(value))


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.array(["text"])},
        {"a": np.array([object], dtype=object)},
        {"a": np.array([1j])},
        {"a": np.array([True])},
        {"a": "text"},
        {"a": None},
        {"a": [1, 2]},
        {1: 2.0},
        [1.0],
        7,
        {"a": np.zeros(2, dtype=[("x", "f4")])},
        {"a": np.array(["2020"], "M8[D]")},
        {"a": {"b": 1.0}},
        {"a": True},
    ],
    ids=range(14),
)
def test_what_is_no_array_of_numbers_is_refused(content, tmp_path):
    path = tmp_path / "stats.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(CheckpointError, match=r"stats.pkl"):
        read_statistics_pickle(path)


def test_an_array_that_lies_about_its_size_is_refused(tmp_path):
    content = pickle.dumps({"a": np.arange(1000, 1004, dtype=np.int64)}, protocol=2)
    lying = content.replace(b"K\x04\x85", b"M\xff\x7f\x85")
    assert lying != content
    path = tmp_path / "stats.pkl"
    path.write_bytes(lying)
    with pytest.raises(CheckpointError, match="bytes for an array of shape"):
        read_statistics_pickle(path)


def test_object_arrays_cannot_be_made_from_bytes(tmp_path):
    """numpy itself trusts a pickled dtype about whether the bytes are pointers."""
    dtype = b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\nt" + dtype + b"I00\nS'AAAAAAAA'\ntb"
    )
    path = tmp_path / "stats.pkl"
    path.write_bytes(b"(dS'a'\n" + array + b"s.")
    with pytest.raises(CheckpointError, match=r"no plain number|something else than numbers"):
        read_statistics_pickle(path)


@pytest.mark.parametrize(
    "target", [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n"]
)
@pytest.mark.parametrize("state", [b"(dS'resolve'\nI1\ns", b"(N(dS'resolve'\nI1\nst"])
def test_a_pickle_cannot_change_the_readers_own_classes(target, state, tmp_path):
    path = tmp_path / "stats.pkl"
    path.write_bytes(target + state + b"b.")
    with pytest.raises(CheckpointError):
        read_statistics_pickle(path)
    path.write_bytes(pickle.dumps(folders.original_statistics()))
    assert "qpos_mean" in read_statistics_pickle(path)


def test_a_memo_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "stats.pkl"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".")
    with pytest.raises(CheckpointError, match="a memo of"):
        read_statistics_pickle(path)


def test_random_damage_to_statistics_is_refused_or_harmless(tmp_path):
    import random

    rng = random.Random(0)
    content = pickle.dumps(folders.original_statistics(), protocol=4)
    path = tmp_path / "stats.pkl"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            # The head and the tail hold the instructions, the middle mostly numbers.
            at = rng.choice([rng.randrange(200), len(damaged) - 1 - rng.randrange(400)])
            damaged[at] = rng.randrange(256)
        path.write_bytes(bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])]))
        try:
            loaded = read_statistics_pickle(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(isinstance(value, torch.Tensor) for value in loaded.values())
    assert refused > 150


def test_random_damage_to_a_checkpoint_is_refused_or_complete(tmp_path, monkeypatch):
    import random

    from actlens.checkpoints.pickled_weights import read_state_dict

    rng = random.Random(0)
    path = tmp_path / "policy_best.ckpt"
    for zipped in (True, False):
        torch.save(
            {"a": torch.ones(2, 3), "b": torch.ones(4)}, path, _use_new_zipfile_serialization=zipped
        )
        content = path.read_bytes()
        for _ in range(120):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(
                bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
            )
            try:
                state = read_state_dict(path)
            except CheckpointError:
                continue
            assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_a_file_too_large_for_statistics_is_refused(tmp_path):
    path = tmp_path / "stats.pkl"
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(CheckpointError, match="too many for statistics"):
        read_statistics_pickle(path)


def test_no_source_file_takes_an_unsafe_way():
    """No plain unpickling, no unsafe torch.load, no import by name, no eval, anywhere."""
    import ast

    import actlens

    for path in Path(actlens.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {
                    "pickle.load",
                    "pickle.loads",
                    "eval",
                    "exec",
                    "__import__",
                    "importlib.import_module",
                    "joblib.load",
                }, f"{path}: {name}"
                options = {key.arg: ast.unparse(key.value) for key in node.keywords}
                if name == "torch.load":
                    assert options.get("weights_only") == "True", path
                assert options.get("allow_pickle") != "True", path


def test_the_readers_message_is_json_safe(tmp_path):
    path = tmp_path / "stats.pkl"
    path.write_bytes(b"c\x1b]0;owned\x07\nsystem\n(tR.")
    with pytest.raises(UnsafeFileError) as caught:
        read_statistics_pickle(path)
    assert str(caught.value).isprintable()
    json.dumps(str(caught.value))
