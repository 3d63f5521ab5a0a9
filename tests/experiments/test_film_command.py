"""`python -m experiments.film`, in process, on a tiny policy and bundled demonstrations."""

import json

import av
import numpy as np
import pandas as pd
import pytest
from test_patching_command import save_tiny_policy

from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from experiments import film

DATA = ["--dataset.repo-id=so101-pick-cube", "--episode=3"]
FRAMES = [0, 30, 60]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def model(policy):
    return HookedACT.from_pretrained(policy)


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """Runs a word with options into a folder of its own, and gives the folder and the table."""

    def done(word, *options):
        folder = tmp_path_factory.mktemp(word) / "out"
        common = [f"--policy.path={policy}", *DATA, "--every=30", f"--output-dir={folder}"]
        assert film.main([word, *common, *options]) == 0
        return folder, pd.read_csv(folder / "values.csv")

    return done


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_attention_is_filmed_and_its_numbers_are_the_policys(run, model, capsys):
    folder, table = run("attention", "--head=1", "--positions", "0", "2")
    text = " ".join(capsys.readouterr().out.split())
    assert "head 1, chunk positions 0, 2" in text
    assert "film.mp4" in text
    assert len(frames_of(folder / "film.mp4")) == len(FRAMES)
    assert table.frame.tolist() == FRAMES
    dataset = open_dataset("so101-pick-cube")
    scenes = list(dataset.scenes(chunk=4, episodes=[3], frames=FRAMES))
    for (_, row), scene in zip(table.iterrows(), scenes, strict=True):
        batch = {key: value[None] for key, value in scene.observation.items()}
        actions, cache = model.run_with_cache(batch)
        expected = cache["decoder.0.cross_attn.hook_pattern"][0, 1, [0, 2]].mean(0)
        shown = row[list(model.tokens.names)].to_numpy(float)
        np.testing.assert_allclose(shown, expected, atol=1e-6)
        assert row["group: top, 80 tokens"] == pytest.approx(shown[2:82].sum())
        predicted = row[[f"predicted {joint}" for joint in "abcdef"]].to_numpy(float)
        np.testing.assert_allclose(predicted, cache["hook_actions"][0, 0], atol=1e-4)
        demonstrated = row[[f"demonstrated {joint}" for joint in "abcdef"]].to_numpy(float)
        np.testing.assert_allclose(demonstrated, scene.action[0], atol=1e-4)
    assert len(actions) == 1
    origin = json.loads((folder / "provenance.json").read_text())
    assert (origin["config"]["head"], origin["dataset"]) == (1, "so101-pick-cube")


def test_encoder_attention_is_that_of_the_named_tokens(run, model):
    _, table = run("encoder-attention", "--asking", "state", "lateral[0,0]", "--every=60")
    scene = open_dataset("so101-pick-cube").scene(3, 60, chunk=4)
    _, cache = model.run_with_cache({k: v[None] for k, v in scene.observation.items()})
    asking = [1, model.tokens.index("lateral[0,0]")]
    expected = cache["encoder.0.attn.hook_pattern"][0][:, asking].mean((0, 1))
    shown = table.iloc[1][list(model.tokens.names)].to_numpy(float)
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_patching_needs_no_donor_to_be_named_and_says_which_it_took(run):
    _, table = run("patching", "--depth=1", "--max-error=0")
    assert table.note.str.fullmatch(r"donor \d+:\d+(: the two actions .*)?").all()
    assert not table.note.str.startswith("donor 3:").any()
    _, fixed = run("patching", "--depth=1", "--max-error=0", "--donor=50:7")
    assert fixed.note.str.startswith("donor 50:7").all()


def test_a_scene_patched_into_itself_has_no_share(run, capsys):
    """The scene and its donor have one action: no share is defined, and the film says so."""
    folder, table = run("patching", "--donor=3", "--every=40")
    assert table.note.str.contains("no share is defined").all()
    assert table["state"].isna().all()
    assert len(frames_of(folder / "film.mp4")) == 2
    assert capsys.readouterr().err.count("Error") == 0


def test_json_prints_one_object_and_nothing_else(policy, tmp_path, capsys):
    arguments = ["attention", f"--policy.path={policy}", *DATA, "--every=60", "--json"]
    assert film.main([*arguments, f"--output-dir={tmp_path}"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["frames"] == [0, 60]
    assert sum(content["bars"][0].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", *DATA, "--head=9"], "no head 9"),
        (["attention", *DATA, "--every=0"], "--every is at least 1"),
        (["attention", DATA[0], "--episode=5000"], "no episode 5000"),
        (["encoder-attention", *DATA, "--asking", "wrist"], "wrist"),
        (["patching", *DATA, "--donor=5000:0"], "no episode 5000"),
        (["patching", *DATA, "--donor=next"], "EPISODE:FRAME or EPISODE, not 'next'"),
        (["patching", *DATA, "--depth=2"], "no depth 2"),
        (["attention"], "needs demonstrations"),
    ],
    ids=["head", "every", "episode", "token", "donor", "word", "depth", "data"],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    out = tmp_path / "out"
    given = [*arguments, f"--policy.path={policy}", f"--output-dir={out}"]
    assert film.main(given) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_camera_that_the_dataset_lacks_is_named(tmp_path, capsys):
    policy = save_tiny_policy(tmp_path / "policy", cameras=("wrist",))
    out = tmp_path / "out"
    arguments = [f"--policy.path={policy}", *DATA, f"--output-dir={out}"]
    assert film.main(["attention", *arguments]) == 3
    assert "observation.images.wrist" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.parametrize("where", ["map_table", "save_map_film"])
def test_an_interrupt_leaves_no_half_file(policy, tmp_path, monkeypatch, capsys, where):
    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(film, where, stop)
    out = tmp_path / "out"
    arguments = ["attention", f"--policy.path={policy}", *DATA, "--every=60"]
    assert film.main([*arguments, f"--output-dir={out}"]) == 130
    left = sorted(path.name for path in out.glob("*")) if out.exists() else []
    assert left == (["film.mp4"] if where == "map_table" else [])
    if left:
        assert len(frames_of(out / "film.mp4")) == 2
    capsys.readouterr()


def test_a_rollout_is_filmed_as_an_episode_is(tmp_path):
    from actlens.sim.environment import PickCube
    from actlens.sim.graphics import RenderingError

    try:
        PickCube(height=24, width=32).reset(seed=0)
    except RenderingError as error:
        pytest.skip(str(error))
    out = tmp_path / "out"
    arguments = ["attention", "--rollout=1", "--every=45", "--policy.path=so101-pick-cube-5pos"]
    assert film.main([*arguments, f"--output-dir={out}"]) == 0
    table = pd.read_csv(out / "values.csv")
    assert table.frame.tolist() == [0, 45]
    # At an inference the policy's action for the frame is the one that was carried out.
    given, done = (
        table[[c for c in table.columns if c.startswith(word)]].iloc[0].to_numpy(float)
        for word in ("predicted", "carried out")
    )
    np.testing.assert_allclose(given, done, atol=1e-3)
    assert film.main([*arguments[:1], "--rollout=-1", *arguments[3:]]) == 3


def test_the_page_holds_the_film_and_a_slider_over_frames(run):
    folder, _ = run("attention")
    page = (folder / "report.html").read_text()
    assert "data:video/mp4;base64," in page
    assert "cross-attention, decoder block 0" in page
    assert "python -m experiments.film patching" in page
