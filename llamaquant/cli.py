"""From command lines to configs: shared by the entry points. Errors become one line and exit code 2 (1 once work began)."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamaquant.config import CalibrationConfig, ExperimentConfig, QuantizationConfig, parse_value
from llamaquant.errors import ConfigError, LlamaQuantError, TrialError
from llamaquant.runner import RunOptions

COMMON: dict[str, tuple[Any, str]] = {
    "model": (ExperimentConfig.model, "demo, a hub id, or a checkpoint folder"),
    "revision": ("", "commit, tag or branch of a hub model"),
    "weights": (ExperimentConfig.weights, "checkpoint, or dummy for random weights of the model's shape"),
    "dataset": (ExperimentConfig.dataset, "demo, coqa (hub), or an official CoQA JSON file"),
    "dataset_revision": ("", "the same for the hub data set"),
    "turns": (ExperimentConfig.turns, "all scores every turn of a story; last only what lm-eval asks"),
    "limit": ("all", "number of stories, or all"),
    "seed": (ExperimentConfig.seed, "of everything drawn at random"),
    "device": (ExperimentConfig.device, "auto, cpu, cuda or cuda:N"),
    "dtype": (ExperimentConfig.dtype, "auto, fp16, bf16 or fp32: of what is not quantized"),
    "batch_size": (ExperimentConfig.batch_size, "questions per batch of lm-eval's evaluation; 0 is 8 on a CPU and 64 on a GPU"),
    "max_length": (ExperimentConfig.max_length, "prompt plus answer in tokens; 0 is the model's context, at most 4096"),
    "calibration": (CalibrationConfig.source, "auto, demo, coqa-train, or a file of texts"),
    "calibration_samples": (CalibrationConfig.samples, "number of calibration texts"),
    "calibration_sequence_length": (CalibrationConfig.sequence_length, "tokens per calibration text at most"),
    "calibration_seed": (CalibrationConfig.seed, "of the draw of calibration texts"),
    "output": (str(RunOptions.output), "folder for checkpoints, logs and the study"),
    "max_f1_drop": (RunOptions.max_f1_drop, "margin of the verdict in absolute F1: 0.01 is one point"),
    "f1_floor": ("", "absolute F1 that the verdict asks for instead of the margin"),
    "log_model": (RunOptions.log_model, "checkpoints logged as artifacts: all, best or none"),
    "timeout": (RunOptions.timeout_s, "seconds that one step of an experiment may take"),
    "plan": (False, "true prints what would be done, and stops"),
}
"""Parameter -> default and meaning; every entry point that runs experiments takes all of them."""


class _Parser(argparse.ArgumentParser):
    """argparse's own refusals, as ours: one line, exit code 2."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"arguments must be those of --help, got an error: {message}: correct it")


def parser(description: str, own: dict[str, tuple[Any, str]]) -> argparse.ArgumentParser:
    """A parser of `own` and the common parameters; all values arrive as strings."""
    return bare_parser(description, own | COMMON)


def bare_parser(description: str, parameters: dict[str, tuple[Any, str]]) -> argparse.ArgumentParser:
    """A parser of `parameters` (name -> default and meaning) alone."""
    result = _Parser(description=description, allow_abbrev=False)
    for name, (default, meaning) in parameters.items():
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        flags = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        result.add_argument(*flags, dest=name, default=shown, help=f"{meaning} (default: {shown or 'none'})")
    return result


def parse(arguments: argparse.ArgumentParser, argv: Sequence[str], extra: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """Declared values, and with `extra` also the undeclared `--key value` pairs (options of a method).

    `mlflow run` appends undeclared `-P key=value` to the command in this form.
    """
    known, rest = arguments.parse_known_args([_unquoted(word) for word in argv])
    if rest and not extra:
        raise ConfigError(f"arguments must be those of --help, got {' '.join(rest)!r}: remove them")
    pairs: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        key, mark, value = word.partition("=")
        if not key.startswith("--") or len(key) < 3:
            raise ConfigError(f"options of a method must be --key value, got {word!r}: see --help")
        pairs[key[2:].replace("-", "_")] = value if mark else next(words, "")
    return {key: str(value) for key, value in vars(known).items()}, pairs


def _unquoted(word: str) -> str:
    """`mlflow run` may hand an empty parameter over as two quotes."""
    return "" if word in ("''", '""') else word


def typed(name: str, text: str, default: Any = None) -> Any:
    """The value of a parameter in the type of its default; ConfigError where it does not fit."""
    default = COMMON[name][0] if default is None else default
    value = parse_value(text, default)
    if type(value) is not type(default):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise ConfigError(f"{name} must be {wanted}, got {text!r}: the default is {str(default).lower()}")
    return value


def parse_limit(text: str) -> int | None:
    """A number of stories; `all` is None."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"limit must be a whole number of stories or all, got {text!r}: use limit=100") from None


def settings(values: dict[str, str]) -> dict[str, Any]:
    """Fields of ExperimentConfig from the common parameters."""
    plain = ("model", "revision", "weights", "dataset", "dataset_revision", "turns", "seed", "device", "dtype", "batch_size", "max_length")
    chosen: dict[str, Any] = {name: typed(name, values[name]) for name in plain}
    chosen["limit"] = parse_limit(values["limit"])
    chosen["calibration"] = CalibrationConfig(
        source=values["calibration"], samples=typed("calibration_samples", values["calibration_samples"]),
        sequence_length=typed("calibration_sequence_length", values["calibration_sequence_length"]),
        seed=typed("calibration_seed", values["calibration_seed"]))
    return chosen


def run_options(values: dict[str, str]) -> RunOptions:
    """RunOptions from the common parameters."""
    if not values["output"] or "\0" in values["output"]:
        raise ConfigError(f"output must be a folder, got {values['output']!r}: use output=outputs")
    return RunOptions(output=Path(values["output"]).expanduser(), log_model=values["log_model"],
                      timeout_s=typed("timeout", values["timeout"]), max_f1_drop=typed("max_f1_drop", values["max_f1_drop"]),
                      f1_floor=typed("f1_floor", values["f1_floor"], 0.0) if values["f1_floor"] else None)


def one_config(values: dict[str, str], options: dict[str, str]) -> ExperimentConfig:
    """The config of `main`: a preset by name, or a method and its options."""
    from llamaquant.presets import PRESETS, preset

    chosen = settings(values)
    if values["experiment"] and values["method"]:
        raise ConfigError(f"name either experiment or method, got {values['experiment']!r} and {values['method']!r}: drop one")
    if not values["experiment"] and not values["method"]:
        raise ConfigError(f"experiment or method must be named, got neither: -P experiment={next(iter(PRESETS))}, or -P method=none")
    if values["experiment"]:
        if options:
            raise ConfigError(f"a preset has its options already, got {', '.join(sorted(options))}: use method instead of experiment")
        return preset(values["experiment"], **chosen)
    quantization = QuantizationConfig.from_text(values["method"], options)
    return ExperimentConfig(name=values.get("name") or quantization.options.label(), quantization=quantization, **chosen)


def execute(command: str, configs: list[ExperimentConfig], values: dict[str, str]) -> None:
    """Plan, and unless `plan=true` run, with a terminal report."""
    from llamaquant import terminal
    from llamaquant.study import make_plan, run_configs
    from llamaquant.tracking import MlflowTracker

    options = run_options(values)
    plan_only = typed("plan", values["plan"])
    plan = make_plan(configs)
    if plan_only:
        terminal.print_plan(plan, options.log_model)
        _mark_run_of_mlflow("plan=true")
        return
    terminal.print_disk(plan, options)
    tracker = MlflowTracker()
    with terminal.TerminalReporter() as reporter:
        summary = run_configs(command, plan, tracker, options, reporter)
    terminal.print_summary(summary)


def guarded(main: Callable[[Sequence[str]], None]) -> None:
    """Run an entry point's `main(argv)`: our errors are one line on stderr; 2 before work began, 1 after."""
    try:
        main(sys.argv[1:])
    except LlamaQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        begun = isinstance(error, TrialError)
        if not begun:
            _mark_run_of_mlflow(str(error))
        sys.exit(1 if begun else 2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(130)


def _mark_run_of_mlflow(reason: str) -> None:
    """`mlflow run` makes its run before any parameter is checked; where nothing ran, it should not stay in the list."""
    run = os.environ.get("MLFLOW_RUN_ID")
    if run:
        with contextlib.suppress(Exception):  # best effort: the reason itself is what the user must see
            from llamaquant.tracking import mark_empty

            mark_empty(run, reason)
