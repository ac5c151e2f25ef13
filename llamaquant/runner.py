"""The life of one tracked experiment, on one screen: prepare in one process, measure in another, log what came back."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llamaquant.config import ExperimentConfig
from llamaquant.coqa.data import Story, stories_sha256
from llamaquant.environment import describe
from llamaquant.errors import BackendError, ConfigError
from llamaquant.experiment import measure, prepare_checkpoint
from llamaquant.isolation import Progress, in_fresh_process
from llamaquant.results import ExperimentResult, TurnPrediction
from llamaquant.sources import question_count
from llamaquant.tracking import DatasetFacts, Tracker, tracked

LOG_MODEL = ("all", "best", "none")


@dataclass(frozen=True)
class RunOptions:
    """How to run, which changes no result.

    Attributes:
        output: folder for checkpoints, logs and the study; made if missing.
        log_model: which checkpoints become artifacts: `all`, `best` (after the last config) or `none`.
        timeout_s: limit of each of the two processes of an experiment, in seconds.
        max_f1_drop: margin of the verdict, in absolute F1 (0.01 is one point).
        f1_floor: absolute F1 that the verdict asks for instead; None compares with the baseline.
    """

    output: Path = Path("outputs")
    log_model: str = "all"
    timeout_s: float = 4 * 3600.0
    max_f1_drop: float = 0.01
    f1_floor: float | None = None

    def __post_init__(self) -> None:
        if self.log_model not in LOG_MODEL:
            raise ConfigError(f"log_model must be all, best or none, got {self.log_model!r}: use all")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout must be a positive number of seconds, got {self.timeout_s!r}: raise it")
        if not 0 < self.max_f1_drop < 1:
            raise ConfigError(f"max_f1_drop must lie between 0 and 1, got {self.max_f1_drop!r}: 0.01 is one point of F1")
        if self.f1_floor is not None and not 0 < self.f1_floor < 1:
            raise ConfigError(f"f1_floor must lie between 0 and 1, got {self.f1_floor!r}: 0.6 is an F1 of 60 points")
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"output must be a folder, got the file {str(self.output)!r}: name another")


def run_tracked(config: ExperimentConfig, tracker: Tracker, parent: str, options: RunOptions, *, position: int = 0,
                stories: list[Story] | None = None, baseline: str = "", progress: Progress | None = None) -> ExperimentResult:
    """Prepare and measure `config` as a child run of `parent`; `baseline` is the fingerprint of the config to compare with.

    Raises:
        LlamaQuantError: why there is no result; the run has ended FAILED with that reason as a tag.
    """
    output = options.output.resolve()
    fingerprint = config.fingerprint()
    log = output / "logs" / f"{config.name}-{fingerprint}.log"
    log.unlink(missing_ok=True)
    tags = {"llamaquant.method": str(config.quantization.method), "llamaquant.preset": config.name,
            "llamaquant.fingerprint": fingerprint, "llamaquant.seed": str(config.seed),
            "llamaquant.weights": config.weights, "llamaquant.position": str(position), **describe()}
    with tracked(tracker, config.name, parent=parent, params=config.to_params(), tags=tags) as run:
        if stories:
            tracker.dataset(run, dataset_facts(config, stories))
        try:
            checkpoint = in_fresh_process(prepare_checkpoint, config, output, log=log, timeout_s=options.timeout_s,
                                          on_progress=progress)
            result: ExperimentResult = in_fresh_process(measure, config, checkpoint, output, baseline, log=log,
                                                        timeout_s=options.timeout_s, on_progress=progress)
        finally:
            tracker.file(run, log, "logs")
        _log_result(tracker, run, result, output / "predictions" / f"{fingerprint}.jsonl")
        if options.log_model == "all":
            tracker.file(run, checkpoint, "checkpoint")
    return dataclasses.replace(result, run_id=run)


def _log_result(tracker: Tracker, run: str, result: ExperimentResult, predictions: Path) -> None:
    """Metrics, samples, predictions; those of all turns also stay in `predictions`, for comparisons after an interruption."""
    tracker.log(run, metrics=result.to_metrics(), tags={
        "llamaquant.kernel": result.kernel, "artifact.loader": result.loader, "llamaquant.notes": " | ".join(result.notes)})
    tracker.text(run, json.dumps(result.latency.raw(), indent=1) + "\n", "latency_samples.json")
    if result.quality:
        tracker.log(run, tags={"quality.batch_size": str(result.quality.batch_size)})
        tracker.text(run, _lines(result.quality.predictions), "predictions_last_turn.jsonl")
    if result.all_turns:
        text = _lines(result.all_turns.predictions)
        tracker.text(run, text, "predictions.jsonl")
        predictions.parent.mkdir(parents=True, exist_ok=True)
        partial = predictions.with_suffix(".partial")
        partial.write_text(text, "utf-8")
        partial.replace(predictions)


def _lines(predictions: tuple[TurnPrediction, ...]) -> str:
    return "".join(json.dumps(dataclasses.asdict(p), ensure_ascii=False) + "\n" for p in predictions)


def stored_scores(output: Path, config: ExperimentConfig) -> list[tuple[str, int, float]]:
    """Story id, turn id and F1 of every turn that `config` answered here; empty where it scored no turns."""
    path = output.resolve() / "predictions" / f"{config.fingerprint()}.jsonl"
    if not path.is_file():
        return []
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [(row["story_id"], row["turn_id"], row["f1"]) for row in rows]


def dataset_facts(config: ExperimentConfig, stories: list[Story]) -> DatasetFacts:
    """What is evaluated, for tracking; a local file is named without its folders."""
    local = config.dataset not in ("demo", "coqa")
    name = Path(config.dataset).name if local else config.dataset
    return DatasetFacts(name=name, digest=stories_sha256(stories), source=name if local else f"llamaquant:{name}",
                        stories=len(stories), questions=question_count(stories))


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP become SystemExit, so that every open run is closed on the way out."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous: dict[signal.Signals, Any] = {}
    for name in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread: the caller keeps its own handlers
            previous[name] = signal.signal(name, stop)
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def check_disk(output: Path, needed_bytes: int) -> None:
    """BackendError before anything is made where the disk cannot hold it."""
    folder = output.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise BackendError(f"checkpoints and artifacts need {needed_bytes / 2**30:.2f} GiB, got {free / 2**30:.2f} GiB free in "
                         f"{folder}: use log_model=none or another output")


@contextlib.contextmanager
def only_user_of(output: Path) -> Iterator[None]:
    """Make `output` and hold it: a second command there would take the first one's half-finished trial for a dead one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        stream = open(output / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - held until the end of the block
    except OSError as error:
        raise ConfigError(f"output must be a folder that can be written, got {str(output)!r} ({error}): name another") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"output must not be in use, got {str(output)!r} with another command at work: wait, or name "
                              "another output") from None
        yield
