"""What users type: every declared parameter arrives, and every bad input ends in one line, exit code 2, no run."""

import contextlib
import gzip
import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaquant import cli
from tests.conftest import make_story

ROOT = Path(__file__).resolve().parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text("utf-8"))


def call(entry: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run `python -m entrypoints.ENTRY` in this process: exit code, stdout, stderr."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [entry, *argv])
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"entrypoints.{entry}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), out.getvalue(), err.getvalue()


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return str(path)


def bad_file(folder: Path, kind: str) -> str:
    """A malformed CoQA file of the given kind."""
    story = make_story()
    path = folder / f"{kind}.json"
    if kind == "not_json":
        return write(path, "{")
    if kind == "cut_gzip":
        path = folder / "cut.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"data": [story]}).encode())[:-20])
        return str(path)
    if kind == "binary":
        path.write_bytes(bytes(range(256)))
        return str(path)
    if kind == "no_data":
        return write(path, {"version": "1.0"})
    if kind == "no_stories":
        return write(path, {"data": []})
    if kind == "missing_key":
        del story["answers"]
    elif kind == "turns_differ":
        story["answers"].pop()
    elif kind == "empty_story":
        story["story"] = "  "
    elif kind == "empty_gold":
        story["additional_answers"]["1"][0]["input_text"] = ""
    elif kind == "same_id":
        return write(path, {"data": [story, story]})
    elif kind == "story_is_a_list":
        return write(path, {"data": [[1]]})
    elif kind == "turn_twice":
        for column in (story["questions"], story["answers"], *story["additional_answers"].values()):
            column[1]["turn_id"] = 1
    return write(path, {"data": [story]})


BAD_FILES = (
    "not_json",
    "cut_gzip",
    "binary",
    "no_data",
    "no_stories",
    "missing_key",
    "turns_differ",
    "empty_story",
    "empty_gold",
    "same_id",
    "story_is_a_list",
    "turn_twice",
)

BAD_ARGUMENTS = [
    ("main", "--experiment bnb_4bit_nf5", "did you mean bnb_4bit_nf4"),
    ("main", "", "got neither"),
    ("main", "--experiment bnb_8bit --method gptq", "drop one"),
    ("main", "--method gptq --bits 5", "2, 3, 4 or 8, got 5"),
    ("main", "--method gptq --group_size 100", "got 100"),
    ("main", "--method gptq --bits four", "'four'"),
    ("main", "--method bnb_4bit --quant_type int4", "'int4'"),
    ("main", "--method nope", "method must be one of"),
    ("main", "--experiment bnb_8bit --bits 4", "preset has its options"),
    ("main", "--method bnb_8bit --colour red", "got 'colour'"),
    ("main", "--method none --name 'a b'", "'a b'"),
    ("main", "--method none --name ../../x", "name must be"),
    ("main", "--method none 4", "got '4'"),
    ("sweep", "--limit -5", "got -5"),
    ("sweep", "--limit 0", "got 0"),
    ("sweep", "--limit ten", "'ten'"),
    ("sweep", "--limit 2.5", "'2.5'"),
    ("sweep", "--method foo", "'foo'"),
    ("sweep", "--grid half", "'half'"),
    ("sweep", "--device tpu", "'tpu'"),
    ("sweep", "--device cuda:99x", "cuda:N"),
    ("sweep", "--dtype int8", "'int8'"),
    ("sweep", "--seed x", "'x'"),
    ("sweep", "--seed -1", "got -1"),
    ("sweep", "--batch_size -2", "batch_size"),
    ("sweep", "--max_length 7", "max_length"),
    ("sweep", "--weights gold", "'gold'"),
    ("sweep", "--dataset /nowhere/coqa.json", "existing file"),
    ("sweep", "--dataset .", "the folder"),
    ("sweep", "--model /nowhere/model", "existing checkpoint folder"),
    ("sweep", "--model a/b/c", "existing checkpoint folder"),
    ("sweep", "--model MLproject", "name its folder"),
    ("sweep", "--model tests", "config.json"),
    ("sweep", "--log_model some", "'some'"),
    ("sweep", "--turns first", "'first'"),
    ("sweep", "--max_f1_drop 2.0", "max_f1_drop"),
    ("sweep", "--max_f1_drop -0.1", "max_f1_drop"),
    ("sweep", "--f1_floor 2", "f1_floor"),
    ("sweep", "--f1_floor high", "'high'"),
    ("sweep", "--timeout 0", "timeout"),
    ("sweep", "--timeout soon", "'soon'"),
    ("sweep", "--plan perhaps", "'perhaps'"),
    ("sweep", "--output MLproject", "must be a folder"),
    ("sweep", "--output ''", "output"),
    ("sweep", "--calibration_samples 0", "calibration_samples"),
    ("sweep", "--frobnicate 1", "--frobnicate"),
    ("quick", "--model no-such/model-at-all --limit 2", "no-such/model-at-all"),
    ("quick", "--dataset coqa --limit 2", "EleutherAI/coqa"),
]


@pytest.mark.parametrize("entry,line,part", BAD_ARGUMENTS, ids=[f"{case[0]} {case[1]}" for case in BAD_ARGUMENTS])
def test_bad_arguments(
    entry: str, line: str, part: str, monkeypatch: pytest.MonkeyPatch, own_store: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    argv = shlex.split(line)
    if "--output" not in argv:
        argv += ["--output", str(tmp_path / "out")]
    code, out, err = call(entry, argv, monkeypatch)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err, err
    assert not own_store.exists(), "a tracking store was made"
    assert not (tmp_path / "out").exists(), "work was begun"


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(kind: str, monkeypatch: pytest.MonkeyPatch, own_store: Path, tmp_path: Path) -> None:
    code, _, err = call("quick", ["--dataset", bad_file(tmp_path, kind)], monkeypatch)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not own_store.exists()


def test_more_stories_than_there_are(coqa_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = call("quick", ["--dataset", str(coqa_file), "--limit", "7"], monkeypatch)
    assert code == 2 and "6 stories, got 7" in err


def test_a_dead_tracking_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/user:secret@x.db")
    code, _, err = call("quick", ["--limit", "2", "--output", str(tmp_path / "out")], monkeypatch)
    assert code == 2 and err.count("\n") == 1 and "tracking store must answer" in err and "secret" not in err


def test_plan_prints_and_stops(monkeypatch: pytest.MonkeyPatch, own_store: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "sweep", ["--plan", "true", "--limit", "3", "--method", "all", "--output", str(tmp_path / "o")], monkeypatch
    )
    assert (code, err) == (0, "") and "gptq-4bit-g128" in out and "3 stories" in out and "disk:" in out
    assert not own_store.exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize("entry", ["main", "quick", "sweep"])
def test_every_declared_parameter_is_in_the_command_with_the_programs_default(entry: str) -> None:
    point = PROJECT["entry_points"][entry]
    used = re.findall(r"--(\w+) \{(\w+)\}", point["command"])
    assert all(flag == name for flag, name in used)
    assert [name for _, name in used] == list(point["parameters"]), "declared and used parameters differ"
    assert set(cli.COMMON) <= set(point["parameters"])
    for name, (default, _) in cli.COMMON.items():
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert point["parameters"][name]["default"] == shown, name


VALUES = {
    "model": "demo",
    "revision": "abc",
    "weights": "dummy",
    "dataset": "demo",
    "dataset_revision": "def",
    "limit": "7",
    "seed": "3",
    "turns": "last",
    "device": "cpu",
    "dtype": "fp32",
    "batch_size": "5",
    "max_length": "512",
    "calibration": "demo",
    "calibration_samples": "9",
    "calibration_sequence_length": "99",
    "calibration_seed": "4",
    "log_model": "none",
    "timeout": "77.0",
    "max_f1_drop": "0.02",
    "f1_floor": "0.7",
}


@pytest.mark.parametrize("entry", ["main", "quick", "sweep"])
def test_every_declared_parameter_reaches_the_program(entry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line that `mlflow run` builds from MLproject, with every value changed from its default."""
    seen: dict[str, Any] = {}

    def record(command: str, plan: Any, tracker: Any, options: Any, reporter: Any) -> Any:
        seen.update(command=command, configs=plan.configs, options=options)
        raise KeyboardInterrupt

    monkeypatch.setattr("llamaquant.study.run_configs", record)
    values = VALUES | {"output": str(tmp_path / "out"), "plan": "false"}
    own = {"main": {"experiment": "", "method": "gptq", "name": "mine"}, "quick": {}, "sweep": {"method": "awq", "grid": "full"}}[
        entry
    ]
    command = PROJECT["entry_points"][entry]["command"].format(**{k: shlex.quote(v) for k, v in (values | own).items()})
    argv = shlex.split(command)[3:] + (["--bits", "3"] if entry == "main" else [])
    code, _, err = call(entry, argv, monkeypatch)
    assert code == 130, err
    params = seen["configs"][-1].to_params()
    for name, value in VALUES.items():
        if name not in ("log_model", "timeout", "dtype", "max_f1_drop", "f1_floor"):
            key = {"calibration": "calibration_source"}.get(name, name)
            assert params[f"config.{key}"] == value, name
    assert entry == "quick" or params["config.dtype"] == "fp32"
    options = seen["options"]
    assert (options.log_model, options.timeout_s, options.output) == ("none", 77.0, tmp_path / "out")
    assert (options.max_f1_drop, options.f1_floor) == (0.02, 0.7)
    if entry == "main":
        assert (seen["configs"][0].name, params["config.gptq_bits"]) == ("mine", "3")
    if entry == "sweep":
        assert params["config.method"] == "awq" and len(seen["configs"]) > 5


def test_main_takes_the_quick_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call("main", ["--quick", "--plan", "true", "--limit", "2"], monkeypatch)
    assert code == 0 and "fp16_baseline" in out and "bnb_8bit" in out and "bnb_4bit_nf4" in out


def test_training_parameters_are_those_of_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llamaquant.demo.train import TrainConfig

    point = PROJECT["entry_points"]["train_demo"]
    assert re.findall(r"\{(\w+)\}", point["command"]) == list(point["parameters"])
    for name, declared in point["parameters"].items():
        if name != "out":
            default = getattr(TrainConfig, name)
            assert declared["default"] == (str(default).lower() if isinstance(default, bool) else str(default)), name
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    code, _, err = call("train_demo", ["--out", str(tmp_path / "full")], monkeypatch)
    assert code == 2 and "new or empty folder" in err
    code, _, err = call("train_demo", ["--steps", "0", "--out", str(tmp_path / "new")], monkeypatch)
    assert code == 2 and "steps=0" in err and not (tmp_path / "new").exists()
