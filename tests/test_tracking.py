"""Runs end in the right state, whatever happens, in MLflow and in its in-memory twin."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from llamaquant.errors import BackendError, TrialError
from llamaquant.tracking import (
    OWNER_TAG,
    REASON_TAG,
    DatasetFacts,
    MemoryTracker,
    MlflowTracker,
    Tracker,
    is_gone,
    mark_empty,
    process_identity,
    tracked,
)

pytestmark = pytest.mark.usefixtures("ready_store")


@pytest.fixture(params=["mlflow", "memory"])
def tracker(request: pytest.FixtureRequest) -> Tracker:
    return MlflowTracker() if request.param == "mlflow" else MemoryTracker()


def state(tracker: Any, run: str) -> tuple[str, dict[str, str]]:
    if isinstance(tracker, MemoryTracker):
        return tracker.runs[run].status, tracker.runs[run].tags
    found = mlflow.MlflowClient().get_run(run)
    return found.info.status, found.data.tags


@pytest.mark.parametrize("error,status,reason", [
    (None, "FINISHED", None), (TrialError("no memory"), "FAILED", "no memory"), (ValueError("odd"), "FAILED", "ValueError: odd"),
    (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"), (SystemExit(143), "KILLED", "SystemExit"),
])
def test_a_run_ends_in_the_right_state(tracker: Tracker, error: BaseException | None, status: str, reason: str | None) -> None:
    run = ""
    try:
        with tracked(tracker, "x", params={"config.a": "1"}, tags={"t": "v"}) as run:
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    found, tags = state(tracker, run)
    assert found == status and tags["t"] == "v"
    assert (reason or "") in tags.get(REASON_TAG, "")


def test_what_a_run_carries(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    tracker = MlflowTracker()
    with tracked(tracker, "parent") as parent, tracked(tracker, "child", parent=parent, params={"config.x": "y" * 900}) as run:
        tracker.log(run, metrics={"quality/f1_last_turn": 0.5})
        tracker.file(run, tmp_path / "folder", "checkpoint")
        tracker.file(run, tmp_path / "missing.log", "logs")
        tracker.text(run, "hello", "note.txt")
        tracker.dataset(run, DatasetFacts("demo", "d" * 64, "llamaquant:demo", 3, 30))
    client = mlflow.MlflowClient()
    found = client.get_run(run)
    assert found.data.tags["mlflow.parentRunId"] == parent and found.info.run_name == "child"
    assert found.data.metrics == {"quality/f1_last_turn": 0.5} and len(found.data.params["config.x"]) == 500
    assert {item.path for item in client.list_artifacts(run)} == {"checkpoint", "note.txt"}
    data = found.inputs.dataset_inputs[0]
    assert (data.dataset.name, data.tags[0].value) == ("demo", "evaluation") and '"stories": 3' in data.dataset.profile


def test_the_run_of_mlflow_run_is_adopted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow.MlflowClient()
    made = client.create_run(client.create_experiment("project")).info
    monkeypatch.setenv("MLFLOW_RUN_ID", made.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", made.experiment_id)
    tracker = MlflowTracker()
    with tracked(tracker, "sweep") as parent:
        assert parent == made.run_id and "MLFLOW_RUN_ID" not in os.environ
        with tracked(tracker, "child", parent=parent) as child:
            assert child != parent
    assert client.get_run(child).info.experiment_id == made.experiment_id
    with tracked(tracker, "next") as other:
        assert other != made.run_id


def test_runs_of_dead_processes_become_killed_and_others_stay() -> None:
    code = ("from llamaquant.tracking import MlflowTracker; t = MlflowTracker();"
            "print(t.open('orphan', parent=None, params={}, tags={}))")
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    tracker = MlflowTracker()
    mine = tracker.open("mine", parent=None, params={}, tags={})
    foreign = tracker.open("foreign", parent=None, params={}, tags={})
    tracker.log(foreign, tags={OWNER_TAG: "another-boot:1:1"})
    MlflowTracker()
    assert state(tracker, dead)[0] == "KILLED" and "without a word" in state(tracker, dead)[1][REASON_TAG]
    assert state(tracker, mine)[0] == "RUNNING" and state(tracker, foreign)[0] == "RUNNING"


def test_who_is_gone() -> None:
    me = process_identity(os.getpid())
    boot, pid, start = me.split(":")
    assert not is_gone(me) and is_gone(f"{boot}:{pid}:{int(start) + 1}") and is_gone(f"{boot}:4194999:1")
    assert not is_gone("other:1:1") and not is_gone("") and not is_gone("nonsense")


def test_reparenting_moves_finished_children_only(tracker: Tracker) -> None:
    old = tracker.open("old", parent=None, params={}, tags={})
    with tracked(tracker, "done", parent=old) as done:
        pass
    running = tracker.open("running", parent=old, params={}, tags={})
    new = tracker.open("new", parent=None, params={}, tags={})
    tracker.reparent(old, new)

    def parent_of(run: str) -> str | None:
        if isinstance(tracker, MemoryTracker):
            return tracker.runs[run].parent
        return str(mlflow.MlflowClient().get_run(run).data.tags["mlflow.parentRunId"])

    assert parent_of(done) == new and parent_of(running) == old


def test_no_answer_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError) as caught:
        MlflowTracker("postgresql://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value) and "127.0.0.1:1/none" in str(caught.value)


def test_runs_for_which_nothing_ran_are_swept_up_at_the_next_start() -> None:
    tracker = MlflowTracker()
    with tracked(tracker, "refused") as refused:
        mark_empty(refused, "bits must be 4")
        MlflowTracker()
        assert mlflow.MlflowClient().get_run(refused).info.lifecycle_stage == "active", "not while it is RUNNING"
    with tracked(tracker, "kept") as kept:
        pass
    MlflowTracker()
    assert mlflow.MlflowClient().get_run(refused).info.lifecycle_stage == "deleted"
    assert mlflow.MlflowClient().get_run(kept).info.lifecycle_stage == "active"
