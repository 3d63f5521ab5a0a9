"""A series goes on where it stopped, and its records hold what was measured."""

import json
from dataclasses import asdict, replace

import pytest

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from actlens.sim.series import (
    Arm,
    EvaluationOptions,
    Run,
    Size,
    evaluation,
    finished,
    run_series,
    running,
    success_along,
    table,
    training,
)
from actlens.sim.series.evaluation import record_of
from tests.experiments.test_patching_command import save_tiny_policy

OPTIONS = EvaluationOptions(frames=(0,), rollouts=1, steps=6, mechanism_scenes=12)


def some_record(arm, seed):
    return {"arm": {"demonstrations": arm, "positions": None}, "training_seed": seed}


def write(folder, name, record):
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / f"{name}.json").write_text(json.dumps(record))


def test_runs_with_a_record_are_not_done_again(tmp_path, monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "Processes", forbidden)
    runs = [Run(Arm(5), 0), Run(Arm(20), 0)]
    for run in runs:
        write(tmp_path, run.name, some_record(run.arm.demonstrations, 0))
    records = run_series(tmp_path, runs, size=Size(), options=OPTIONS)
    assert [record["arm"]["demonstrations"] for record in records] == [5, 20]


def test_a_finished_policy_is_not_trained_again_and_keeps_no_training_state(tmp_path, monkeypatch):
    trainings = []

    def train(config, console):
        trainings.append(config)
        folder = config.output_dir / "pretrained_model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (config.output_dir / "training_state.pt").write_text("large")
        (config.output_dir / "train_config.json").write_text(
            json.dumps(asdict(config), default=str)
        )
        return folder

    monkeypatch.setattr(training, "train", train)
    run = Run(Arm(5), 0)
    first = training.trained(run, tmp_path, Size())
    assert training.trained(run, tmp_path, Size()) == first
    assert len(trainings) == 1
    assert not (first.parent / "training_state.pt").exists()


def test_records_go_from_much_to_little_whatever_was_finished_first(tmp_path):
    write(tmp_path, "a", some_record(5, 1))
    write(tmp_path, "b", some_record(100, 0))
    write(tmp_path, "c", some_record(5, 0))
    places = {"demonstrations": 50, "positions": 9}
    write(tmp_path, "d", some_record(5, 0) | {"arm": places})
    found = [(*r["arm"].values(), r["training_seed"]) for r in finished(tmp_path)]
    assert found == [(100, None, 0), (5, None, 0), (5, None, 1), (50, 9, 0)]


def few(name):
    dataset = open_dataset(name)
    return replace(dataset, episodes=dataset.episodes[:: len(dataset.episodes) // 12])


def test_a_record_holds_all_that_was_measured(renderer, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_dataset", few)
    shown = few("so101-pick-cube")
    policy = save_tiny_policy(tmp_path / "pretrained_model", cameras=("top",))
    (tmp_path / "training.jsonl").write_text('{"step": 1, "l1": 0.5}\n')
    (tmp_path / "train_config.json").write_text('{"steps": 1, "cache": "here"}')
    record = json.loads(json.dumps(record_of(Run(Arm(10), 0), policy, shown, OPTIONS)))
    assert len(record["episodes"]) == 10
    assert record["training"] == {"l1": 0.5, "steps": 1}
    weights = HookedACT.from_pretrained(policy).checkpoint.sha256
    assert record["provenance"]["weights_sha256"] == weights
    assert len(table([record], "episodes")) == 13
    assert success_along([record]).rollouts.tolist() == [1, 1, 1, 1]
    far = table([record], "rollouts").set_index("region").distance_mm
    assert far["demonstrated places"] == pytest.approx(0.0, abs=0.01)
    assert far["strip"] > 5
    mechanism = table([record], "mechanism")
    assert (mechanism.undefined == "").all()
    assert mechanism.lookup.notna().any()
    whole = table([record], "indices").query("region == 'all'")
    assert whole.policy_unseen.gt(whole.nearest_unseen).all(), "untrained, and better than a table?"


def test_an_empty_folder_has_no_records(tmp_path):
    with pytest.raises(SceneError, match="no finished run"):
        finished(tmp_path)
