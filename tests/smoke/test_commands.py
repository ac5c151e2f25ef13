"""Whole commands on the demo model, on a CPU, as a user runs them: processes, tracking store, artifacts."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from llamaquant import ExperimentConfig, QuantizationConfig, QuantMethod, RunOptions, run_experiment, run_sweep
from llamaquant.errors import TrialError
from tests.conftest import ROOT, shared_folder

pytestmark = pytest.mark.smoke
NEEDED = (
    "quality/f1",
    "quality/f1_lower",
    "quality/f1_upper",
    "quality/gold_nll_nats_per_token",
    "quality/f1_last_turn",
    "quality/em_last_turn",
    "cost/bits_per_param",
    "cost/checkpoint_mib",
    "speed/decode_ms_per_token",
    "speed/prefill_512_ms",
    "cost/peak_rss_mib",
    "artifact/reload_max_abs_logit_error",
)


def runs_of(database: Path) -> tuple[list[Any], list[Any]]:
    """Parents and children of the store."""
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in children], children


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one `mlflow run . -e sweep` on 6 stories, with its store."""
    folder = tmp_path_factory.mktemp("sweep")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        "mlflow",
        "run",
        str(ROOT),
        "-e",
        "sweep",
        "--env-manager",
        "local",
        "--experiment-name",
        "smoke",
        "-P",
        "limit=6",
        "-P",
        f"output={folder / 'out'}",
    ]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_a_sweep_ends_with_a_table_and_whole_runs(swept: Path) -> None:
    parents, children = runs_of(swept / "mlflow.db")
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert len(children) == 7 and {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.params["config.dtype"] for run in children} == {"bf16", "fp16", "auto"}
    for run in children:
        for name in NEEDED:
            assert math.isfinite(run.data.metrics[name]), name
        assert run.data.tags["git.commit"] and run.data.tags["version.torch"] and run.data.tags["llamaquant.kernel"]
        assert run.inputs.dataset_inputs[0].dataset.name == "demo"
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    shown = (swept / "stdout").read_text()
    assert "bnb-4bit-nf4-dq" in shown and "http://127.0.0.1:5000/#/experiments/" in shown
    for run in children:
        is_baseline = run.info.run_name == "bf16_baseline"
        assert ("quality.verdict" in run.data.tags) != is_baseline and (
            "quality/f1_diff_lower" in run.data.metrics
        ) != is_baseline
        assert is_baseline or (run.data.metrics["quality/kl_top256_nats_per_token"] >= 0 and run.data.tags["quality.sentence"])
    by_name = {run.info.run_name: run.data.metrics for run in children}
    assert by_name["bf16_baseline"]["cost/bits_per_param"] == 16
    assert by_name["bnb-4bit-nf4-dq"]["cost/bits_per_param"] < by_name["bnb-4bit-nf4"]["cost/bits_per_param"]
    assert by_name["bnb-4bit-nf4"]["cost/bits_per_param"] < by_name["bnb-8bit"]["cost/bits_per_param"] < 16
    assert by_name["bf16_baseline"]["artifact/reload_max_abs_logit_error"] == 0


def test_artifacts_are_whole(swept: Path, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{swept / 'mlflow.db'}")
    run = next(run for run in runs_of(swept / "mlflow.db")[1] if run.info.run_name == "bnb-4bit-nf4")
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    every = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(every) == run.data.metrics["quality/questions"] > 30
    assert sum(p["f1"] for p in every) / len(every) == pytest.approx(run.data.metrics["quality/f1"])
    predictions = [json.loads(line) for line in (folder / "predictions_last_turn.jsonl").read_text().splitlines()]
    assert len(predictions) == 6
    answers = {(p["story_id"], p["turn_id"]): p["prediction"] for p in every}
    assert sum(answers[p["story_id"], p["turn_id"]] == p["prediction"] for p in predictions) >= 5, "bf16 may flip a tie"
    mean = sum(p["f1"] for p in predictions) / len(predictions)
    assert mean == pytest.approx(run.data.metrics["quality/f1_last_turn"])
    assert {"story_id", "turn_id", "prompt_sha256", "golds", "prediction", "f1", "em"} <= set(predictions[0])
    samples = json.loads((folder / "latency_samples.json").read_text())
    assert set(samples["decode_batch"]) == {"1", "4", "8"} and set(samples["prefill_tokens"]) == {"128", "256", "512", "1024"}
    from llamaquant.checkpoint import verify

    assert verify(folder / "checkpoint").loader == "transformers"
    assert "from_pretrained" in (folder / "checkpoint" / "README.md").read_text()
    assert list((folder / "logs").iterdir())


def test_the_artifact_alone_gives_the_logged_f1_through_the_lm_eval_command(swept: Path, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{swept / 'mlflow.db'}")
    parents, children = runs_of(swept / "mlflow.db")
    best = parents[0].data.tags["llamaquant.best_run"]
    run = next(run for run in children if run.info.run_id == best)
    checkpoint = client.download_artifacts(best, "checkpoint", str(tmp_path))
    task = next((swept / "out" / "evaluation").iterdir())
    dtype = {"fp16": "float16"}.get(run.data.params["config.dtype"], "bfloat16")
    command = [
        str(Path(sys.executable).parent / "lm_eval"),
        "--model",
        "hf",
        "--model_args",
        f"pretrained={checkpoint},dtype={dtype}",
        "--include_path",
        str(task),
        "--tasks",
        "llamaquant_coqa",
        "--batch_size",
        run.data.tags["quality.batch_size"],
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path / "scores"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    scores = json.loads(next((tmp_path / "scores").rglob("results_*.json")).read_text())["results"]["llamaquant_coqa"]
    assert round(scores["f1,none"], 4) == round(run.data.metrics["quality/f1_last_turn"], 4)
    assert round(scores["em,none"], 4) == round(run.data.metrics["quality/em_last_turn"], 4)


def test_the_python_api_runs_the_studys_example(tmp_path: Path, ready_store: Path) -> None:
    config = ExperimentConfig(
        name="my_experiment",
        limit=3,
        quantization=QuantizationConfig(
            method=QuantMethod.BITSANDBYTES_4BIT, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    options = RunOptions(output=tmp_path / "out", log_model="none")
    result = run_experiment(config, options=options)
    assert result.finished and 0 <= result.metrics["quality/f1_last_turn"] <= 1
    again = run_experiment(config, options=options)
    assert again.run_id != result.run_id and again.checkpoint == result.checkpoint, "the checkpoint is reused, the run is new"
    assert again.metrics["quality/f1_last_turn"] == result.metrics["quality/f1_last_turn"]
    damaged = Path(result.checkpoint) / "config.json"
    damaged.write_text(damaged.read_text() + " ")
    with pytest.raises(TrialError, match="changed config.json"):
        run_experiment(config, options=options)


def test_a_killed_worker_fails_its_run_and_the_sweep_goes_on(tmp_path: Path, ready_store: Path) -> None:
    process = _start_sweep(tmp_path)
    _kill_first_worker(process.pid, tmp_path / "out")
    assert process.wait(timeout=600) == 0
    _, children = runs_of(ready_store)
    states = sorted(run.info.status for run in children)
    assert states == ["FAILED", "FINISHED", "FINISHED"]
    failed = next(run for run in children if run.info.status == "FAILED")
    assert "SIGKILL" in failed.data.tags["llamaquant.reason"]


def test_sigterm_of_the_parent_leaves_no_run_running_and_no_process(tmp_path: Path, ready_store: Path) -> None:
    process = _start_sweep(tmp_path)
    worker = _first_worker(process.pid, tmp_path / "out")
    process.terminate()
    assert process.wait(timeout=120) == 143
    parents, children = runs_of(ready_store)
    assert {run.info.status for run in [*parents, *children]} == {"KILLED"}
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_sigkill_of_the_parent_is_tidied_at_the_next_start(tmp_path: Path, ready_store: Path) -> None:
    process = _start_sweep(tmp_path)
    _first_worker(process.pid, tmp_path / "out")
    process.kill()
    process.wait()
    summary = run_sweep([ExperimentConfig("fp32", limit=2, dtype="fp32")], options=RunOptions(tmp_path / "other", "none"))
    assert len(summary.finished) == 1
    parents, children = runs_of(ready_store)
    assert sorted(run.info.status for run in parents) == ["FINISHED", "KILLED"]
    assert "RUNNING" not in {run.info.status for run in children}


def test_training_is_a_tracked_run_with_a_loadable_checkpoint(tmp_path: Path, ready_store: Path) -> None:
    command = [sys.executable, "-m", "entrypoints.train_demo", "--out", str(tmp_path / "demo"), "--steps", "3", "--stories", "60"]
    command += ["--batch_size", "4", "--eval_stories", "2", "--workers", "1", "--device", "cpu"]
    subprocess.run(command, check=True, timeout=500, cwd=tmp_path)
    (run,), _ = runs_of(ready_store)
    assert run.info.status == "FINISHED" and run.info.run_name == "train_demo"
    assert math.isfinite(run.data.metrics["train/loss_nats_per_token"]) and "quality/f1_last_turn" in run.data.metrics
    from llamaquant.methods.base import load_pretrained

    assert load_pretrained(tmp_path / "demo", "cpu", "bf16").kernel == "Linear"
    assert run.data.tags["git.commit"][:12] in (tmp_path / "demo" / "README.md").read_text()


def _start_sweep(folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from llamaquant import presets, run_sweep, RunOptions\n"
        "run_sweep(presets.quick(limit=3), options=RunOptions(Path(sys.argv[1]), 'none'))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder / "out")], cwd=folder)


def _descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *_descendants(int(entry.name))]
    return found


def _first_worker(pid: int, output: Path) -> int:
    """The first process that works on an experiment: it is the leader of a session of its own and its log exists."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if (output / "logs").is_dir() and any((output / "logs").iterdir()):
            for child in _descendants(pid):
                try:
                    if os.getsid(child) == child:
                        return child
                except ProcessLookupError:
                    continue
        time.sleep(0.05)
    raise AssertionError("no worker appeared")


def _kill_first_worker(pid: int, output: Path) -> None:
    os.kill(_first_worker(pid, output), 9)


@pytest.mark.slow
def test_real_model_on_real_stories_equals_lm_evals_own_numbers(tmp_path: Path) -> None:
    """SmolLM2-135M on 30 open CoQA stories: F1, EM and every prediction as lm-eval gives them by itself."""
    model = Path(os.environ.get("LLAMAQUANT_SMOLLM2", ROOT / ".smollm2"))
    shared = shared_folder()
    if shared is None or not (model / "config.json").is_file():
        pytest.skip("needs LLAMAQUANT_SMOLLM2 (a SmolLM2-135M folder) and LLAMAQUANT_SHARED (open CoQA stories)")
    data = shared / "data" / "coqa-dev-open.json.gz"
    config = ExperimentConfig("smollm2", model=str(model), dataset=str(data), limit=30, dtype="fp32", batch_size=1, turns="last")
    outcome = run_experiment(config, options=RunOptions(tmp_path / "out", "none"))
    task = next((tmp_path / "out" / "evaluation").iterdir())
    arguments = f"pretrained={model},dtype=float32,max_length=4096"
    command = [
        str(Path(sys.executable).parent / "lm_eval"),
        "--model",
        "hf",
        "--model_args",
        arguments,
        "--include_path",
        str(task),
        "--tasks",
        "llamaquant_coqa",
        "--batch_size",
        "1",
        "--device",
        "cpu",
        "--log_samples",
        "--output_path",
        str(tmp_path / "scores"),
    ]
    subprocess.run(command, check=True, timeout=3000)
    scores = json.loads(next((tmp_path / "scores").rglob("results_*.json")).read_text())["results"]["llamaquant_coqa"]
    assert outcome.metrics["quality/f1_last_turn"] == pytest.approx(scores["f1,none"], abs=1e-12)
    assert outcome.metrics["quality/em_last_turn"] == pytest.approx(scores["em,none"], abs=1e-12)
    theirs = {}
    for line in next((tmp_path / "scores").rglob("samples_*.jsonl")).read_text().splitlines():
        sample = json.loads(line)
        theirs[sample["doc"]["id"]] = sample["resps"][0][0].strip().split("\n")[0]
    client = mlflow.MlflowClient()
    folder = Path(client.download_artifacts(outcome.run_id, "predictions_last_turn.jsonl", str(tmp_path)))
    ours = {p["story_id"]: p["prediction"] for p in map(json.loads, folder.read_text().splitlines())}
    assert ours == theirs and len(ours) == 30
