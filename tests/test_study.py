"""A sweep is every config exactly once, whatever fails or stops it; run with a stand-in for the work of one experiment."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamaquant import ExperimentConfig, QuantizationConfig, RunOptions, presets
from llamaquant.errors import ConfigError, DataError, TrialError
from llamaquant.results import MIB, ExperimentResult, Footprint, Latency, Memory, Samples, finite
from llamaquant.runner import only_user_of
from llamaquant.study import Reporter, make_plan, run_configs
from llamaquant.tracking import MemoryTracker, tracked


def result(config: ExperimentConfig, run: str) -> ExperimentResult:
    bits = config.quantization.options.bits
    return ExperimentResult(
        name=config.name, footprint=Footprint({"block_weights": bits * 100, "embedding": 200}, 900, 800, 2000),
        memory=Memory({"bfloat16": 10}, {"load": {"rss": 5.0}, "decode": {"rss": 7.0}}, 1, 1),
        latency=Latency({128: Samples((1.0, 2.0, 9.0))}, {1: Samples((4.0, 4.0)), 4: Samples((8.0,))}, 128), quality=None,
        kernel="Linear", loader="transformers", reload_max_abs_logit_error=0.0, run_id=run)


class Work:
    """Stands in for `run_tracked`: fails, stops or finishes as told, and counts."""

    def __init__(self, fail: tuple[str, ...] = (), stop_at: str = "") -> None:
        self.fail, self.stop_at = fail, stop_at
        self.done: list[str] = []

    def __call__(self, config: ExperimentConfig, tracker: Any, parent: str, options: RunOptions, **kwargs: Any) -> ExperimentResult:
        with tracked(tracker, config.name, parent=parent, params=config.to_params()) as run:
            if config.name == self.stop_at:
                raise KeyboardInterrupt
            if config.name in self.fail:
                raise TrialError(f"{config.name} must fit in memory, got a crash: use less")
            self.done.append(config.name)
        return result(config, run)


CONFIGS = presets.sweep("bnb", limit=3)
NAMES = [config.name for config in CONFIGS]


def run(work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tracker: MemoryTracker | None = None) -> tuple[Any, MemoryTracker]:
    monkeypatch.setattr("llamaquant.study.run_tracked", work)
    tracker = tracker or MemoryTracker()
    return run_configs("sweep", make_plan(CONFIGS), tracker, RunOptions(output=tmp_path / "out")), tracker


def test_each_config_once_under_one_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work = Work()
    summary, tracker = run(work, monkeypatch, tmp_path)
    assert work.done == NAMES == [outcome.config.name for outcome in summary.outcomes]
    parents = [run for run in tracker.runs.values() if run.parent is None]
    assert len(parents) == 1 and all(run.status == "FINISHED" for run in tracker.runs.values())
    assert len(tracker.runs) == len(NAMES) + 1
    assert "outcomes.json" in parents[0].artifacts and parents[0].metrics["study/finished"] == len(NAMES)
    children = [run for run in tracker.runs.values() if run.parent]
    assert sorted(int(run.tags["optuna.trial"]) for run in children) == list(range(len(NAMES)))


def test_a_failing_config_ends_failed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary, tracker = run(Work(fail=(NAMES[2],)), monkeypatch, tmp_path)
    failed = [run for run in tracker.runs.values() if run.status == "FAILED"]
    assert [run.name for run in failed] == [NAMES[2]] and "must fit in memory" in failed[0].tags["llamaquant.reason"]
    assert len(summary.finished) == len(NAMES) - 1 and "must fit in memory" in summary.outcomes[2].reason


def test_all_failing_is_an_error_with_the_first_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracker = MemoryTracker()
    with pytest.raises(TrialError, match=f"{len(NAMES)} failures; the first: bf16_baseline must fit"):
        run(Work(fail=tuple(NAMES)), monkeypatch, tmp_path, tracker)
    assert {run.status for run in tracker.runs.values()} == {"FAILED"}


def test_the_same_command_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracker = MemoryTracker()
    first = Work(fail=(NAMES[0],), stop_at=NAMES[3])
    with pytest.raises(KeyboardInterrupt):
        run(first, monkeypatch, tmp_path, tracker)
    assert first.done == NAMES[1:3] and "RUNNING" not in {run.status for run in tracker.runs.values()}
    second = Work()
    summary, _ = run(second, monkeypatch, tmp_path, tracker)
    assert sorted(second.done) == sorted(NAMES[3:]), "the stopped config again, the rest once"
    assert [outcome.finished for outcome in summary.outcomes] == [False] + [True] * (len(NAMES) - 1)
    children = [run for run in tracker.runs.values() if run.parent == summary.parent_run_id and run.status == "FINISHED"]
    assert sorted(run.name for run in children) == sorted(NAMES[1:]), "finished runs moved to the parent that goes on"
    third = Work()
    run(third, monkeypatch, tmp_path, tracker)
    assert third.done == NAMES, "a complete study is begun anew"


def test_sigterm_leaves_no_run_running(tmp_path: Path, ready_store: Path) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
import llamaquant.study as study
from llamaquant import RunOptions, presets
from llamaquant.tracking import MlflowTracker, tracked
def work(config, tracker, parent, options, **kwargs):
    with tracked(tracker, config.name, parent=parent):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
study.run_tracked = work
study.run_configs("sweep", study.make_plan(presets.sweep("bnb", limit=2)), MlflowTracker(), RunOptions(output=Path(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=dict(os.environ), timeout=120)
    assert done.returncode == 143
    import mlflow

    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("llamaquant").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED", "KILLED"]


def test_the_reporter_hears_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[str] = []

    class Ear(Reporter):
        def config_ended(self, position: int, outcome: Any) -> None:
            heard.append(outcome.config.name)

    monkeypatch.setattr("llamaquant.study.run_tracked", Work())
    run_configs("sweep", make_plan(CONFIGS), MemoryTracker(), RunOptions(output=tmp_path / "o"), Ear())
    assert heard == NAMES


@pytest.mark.parametrize("configs,part", [
    ([], "got none"), ([CONFIGS[0], CONFIGS[0]], "same settings"),
    ([ExperimentConfig("a"), ExperimentConfig("a", QuantizationConfig("bnb_8bit"))], "same name"),
    ([ExperimentConfig("a"), ExperimentConfig("b", QuantizationConfig("bnb_8bit"), seed=1)], "share seed"),
    ([ExperimentConfig("a", limit=3), ExperimentConfig("b", QuantizationConfig("bnb_8bit"), limit=4)], "share limit"),
])
def test_plans_that_make_no_sense(configs: list[ExperimentConfig], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        make_plan(configs)


def test_predicted_bits_by_hand() -> None:
    plan = make_plan(presets.quick(limit=1))
    shape = plan.shape
    sixteen = 16.0 * (shape.embedding_parameters + shape.norm_parameters)
    rows = shape.layers * sum(rows for rows, _ in shape.block_linears.values())
    linears = shape.layers * len(shape.block_linears)
    eight = 8.0 * shape.block_parameters + 32 * rows + 8 * linears
    assert plan.predicted_bits[0] == 16 and plan.predicted_bits[1] == pytest.approx((sixteen + eight) / shape.parameters, rel=1e-12)
    four = (4 + 32 / 64) * shape.block_parameters
    assert plan.predicted_bits[2] == pytest.approx((sixteen + four) / shape.parameters, rel=0.01)
    assert plan.disk_bytes("none") == sum(plan.checkpoint_bytes) == plan.disk_bytes("all") / 2


def test_an_output_has_one_user(tmp_path: Path) -> None:
    with only_user_of(tmp_path / "o"), pytest.raises(ConfigError, match="in use"), only_user_of(tmp_path / "o"):
        pass
    with only_user_of(tmp_path / "o"):
        pass


def test_a_study_store_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.db").write_text("this is no database, whatever its name says" * 10)
    from llamaquant.errors import BackendError

    with pytest.raises(BackendError, match=r"study\.db"):
        run(Work(), monkeypatch, tmp_path)


def test_metrics_have_units_and_no_nan() -> None:
    metrics = result(CONFIGS[2], "r").to_metrics()
    assert metrics["cost/bits_per_param"] == 8 * 1000 / 900 and metrics["cost/block_bits_per_param"] == 8.0
    assert metrics["speed/decode_ms_per_token"] == 4.0 and metrics["speed/throughput_b4_tokens_per_s"] == 500.0
    assert metrics["speed/prefill_128_ms"] == 2.0 and metrics["cost/peak_rss_mib"] == 7.0
    assert metrics["cost/checkpoint_mib"] == 1000 / MIB
    with pytest.raises(TrialError, match="x=nan"):
        finite({"x": float("nan")})
    assert finite({"x": None, "y": 1}) == {"y": 1.0}


def test_dummy_weights_have_no_stories() -> None:
    plan = make_plan(presets.quick(weights="dummy"))
    assert plan.stories == ()
    with pytest.raises(DataError):
        make_plan(presets.quick(limit=1, dataset="/nowhere.json"))
