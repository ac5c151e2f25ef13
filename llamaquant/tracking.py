"""The only place that knows MLflow: the life of runs, what they carry, and what killed processes left behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llamaquant.errors import BackendError, LlamaQuantError, TrialError

EXPERIMENT = "llamaquant"
OWNER_TAG = "llamaquant.owner"
REASON_TAG = "llamaquant.reason"
EMPTY_TAG = "llamaquant.nothing_ran"
MAX_PARAM = 500
MAX_TAG = 5000


@dataclass(frozen=True)
class DatasetFacts:
    """What was evaluated: name, digest of the stories, where they come from, how many stories and questions."""

    name: str
    digest: str
    source: str
    stories: int
    questions: int


@dataclass(frozen=True)
class RunFacts:
    """A tracked run, read back."""

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class Tracker(Protocol):
    """Where runs are written. Every method takes the run's id; no state is ambient."""

    def open(self, name: str, *, parent: str | None, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Begin a run and return its id. Without `parent` it is a command's own run."""

    def log(self, run: str, *, metrics: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None,
            step: int = 0) -> None:
        """Add metrics (at `step`, for what is measured repeatedly) and tags."""

    def dataset(self, run: str, facts: DatasetFacts) -> None:
        """State what was evaluated."""

    def file(self, run: str, path: Path, folder: str = "") -> None:
        """Attach one file, or all files of a folder, below `folder`."""

    def text(self, run: str, text: str, name: str) -> None:
        """Attach a text under the file name `name`."""

    def close(self, run: str, status: str, reason: str = "") -> None:
        """End a run as FINISHED, FAILED or KILLED; the reason becomes a tag."""

    def reparent(self, old: str, new: str) -> None:
        """Give the finished children of an interrupted command's run to the run that goes on with it."""


@contextlib.contextmanager
def tracked(tracker: Tracker, name: str, *, parent: str | None = None, params: Mapping[str, str] | None = None,
            tags: Mapping[str, str] | None = None) -> Iterator[str]:
    """A run that ends whatever happens: FINISHED, FAILED with its reason, or KILLED on Ctrl-C, SIGTERM and exit."""
    run = tracker.open(name, parent=parent, params=params or {}, tags=tags or {})
    try:
        yield run
    except LlamaQuantError as error:
        tracker.close(run, "FAILED", str(error))
        raise
    except Exception as error:
        tracker.close(run, "FAILED", f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:
        tracker.close(run, "KILLED", f"stopped by {type(error).__name__}")
        raise
    tracker.close(run, "FINISHED")


def process_identity(pid: int) -> str:
    """Names one process of one boot of one machine: boot id, pid, start time (proc(5), field 22 of stat)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return f"unknown:{pid}:0"
    return f"{boot}:{pid}:{stat.rpartition(')')[2].split()[19]}"


def is_gone(owner: str) -> bool:
    """True where `owner` is a process of this machine and boot, or of an earlier boot of it, that does not live any more.

    A process of another machine is never taken for dead: its boot id is unknown here.
    """
    boot, _, rest = owner.partition(":")
    pid = rest.partition(":")[0]
    mine = process_identity(os.getpid()).partition(":")[0]
    if boot != mine or not pid.isdigit() or boot == "unknown":
        return False
    return process_identity(int(pid)) != owner


class MlflowTracker:
    """Runs in an MLflow tracking store.

    Under `mlflow run` the first run opened without a parent is the one that `mlflow run` made (MLFLOW_RUN_ID).
    """

    def __init__(self, uri: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow.exceptions import MlflowException

        try:
            self._client, self._experiment = self._connect(uri)
        except (MlflowException, OSError, ImportError) as error:
            raise BackendError(f"the tracking store must answer, got {type(error).__name__} from {_redacted(uri)}: check "
                               "MLFLOW_TRACKING_URI") from None
        self._recover()

    def _connect(self, uri: str | None) -> tuple[Any, str]:
        import logging

        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client = mlflow.MlflowClient(tracking_uri=uri)
        given = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if given:
            return client, client.get_experiment(given).experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = client.get_experiment_by_name(name)
        return client, found.experiment_id if found else client.create_experiment(name)

    @property
    def experiment_id(self) -> str:
        return self._experiment

    def _recover(self) -> None:
        """End runs whose process is gone as KILLED, as a SIGKILL leaves nobody else to do it; delete runs without content."""
        for run in self._client.search_runs([self._experiment], "attributes.status = 'RUNNING'", max_results=5000):
            owner = run.data.tags.get(OWNER_TAG, "")
            if owner and is_gone(owner):
                self.close(run.info.run_id, "KILLED", "its process ended without a word")
        for run in self._client.search_runs([self._experiment], f"tags.`{EMPTY_TAG}` != ''", max_results=5000):
            if run.info.status != "RUNNING":
                self._client.delete_run(run.info.run_id)

    def open(self, name: str, *, parent: str | None, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        all_tags = {**tags, OWNER_TAG: process_identity(os.getpid())}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        made_by_mlflow = os.environ.pop("MLFLOW_RUN_ID", None) if parent is None else None
        if made_by_mlflow:
            run = made_by_mlflow
            self._client.update_run(run, name=name)
        else:
            run = self._client.create_run(self._experiment, run_name=name).info.run_id
        self.log(run, tags=all_tags)
        chosen = [Param(key, value[:MAX_PARAM]) for key, value in params.items()]
        self._client.log_batch(run, params=chosen)
        return run

    def log(self, run: str, *, metrics: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None,
            step: int = 0) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        self._client.log_batch(run, metrics=[Metric(key, value, now, step) for key, value in (metrics or {}).items()],
                               tags=[RunTag(key, str(value)[:MAX_TAG]) for key, value in (tags or {}).items()])

    def dataset(self, run: str, facts: DatasetFacts) -> None:
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = json.dumps({"stories": facts.stories, "questions": facts.questions})
        data = Dataset(name=facts.name, digest=facts.digest[:36], source_type="local",
                       source=json.dumps({"uri": facts.source}), profile=profile)
        self._client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "evaluation")])])

    def file(self, run: str, path: Path, folder: str = "") -> None:
        if path.is_dir():
            self._client.log_artifacts(run, str(path), folder or None)
        elif path.is_file():
            self._client.log_artifact(run, str(path), folder or None)

    def text(self, run: str, text: str, name: str) -> None:
        self._client.log_text(run, text, name)

    def close(self, run: str, status: str, reason: str = "") -> None:
        if reason:
            self.log(run, tags={REASON_TAG: reason})
        self._client.set_terminated(run, status=status)

    def reparent(self, old: str, new: str) -> None:
        wanted = f"tags.`mlflow.parentRunId` = '{old}' and attributes.status = 'FINISHED'"
        for run in self._client.search_runs([self._experiment], wanted, max_results=5000):
            self._client.set_tag(run.info.run_id, "mlflow.parentRunId", new)

    def children(self, parent: str) -> list[RunFacts]:
        """The runs below `parent`, in the order of their configs."""
        wanted = f"tags.`mlflow.parentRunId` = '{parent}'"
        found = [_facts(run) for run in self._client.search_runs([self._experiment], wanted, max_results=5000)]
        return sorted(found, key=lambda facts: int(facts.tags.get("llamaquant.position", "0")))

    def parents(self) -> list[RunFacts]:
        """The commands' own runs, newest first."""
        runs = self._client.search_runs([self._experiment], max_results=5000, order_by=["attributes.start_time DESC"])
        return [_facts(run) for run in runs if "mlflow.parentRunId" not in run.data.tags]


def _facts(run: Any) -> RunFacts:
    return RunFacts(run_id=run.info.run_id, name=run.info.run_name, status=run.info.status, params=dict(run.data.params),
                    metrics=dict(run.data.metrics), tags=dict(run.data.tags))


@dataclass
class MemoryRun:
    """One run of the in-memory twin."""

    name: str
    parent: str | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    datasets: list[DatasetFacts] = field(default_factory=list)
    status: str = "RUNNING"


class MemoryTracker:
    """The same protocol without a store, for tests and for callers who track elsewhere."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}

    def open(self, name: str, *, parent: str | None, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        run = f"run{len(self.runs)}"
        self.runs[run] = MemoryRun(name, parent, dict(params), dict(tags))
        return run

    def log(self, run: str, *, metrics: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None,
            step: int = 0) -> None:
        self.runs[run].metrics.update(metrics or {})
        self.runs[run].tags.update(tags or {})

    def dataset(self, run: str, facts: DatasetFacts) -> None:
        self.runs[run].datasets.append(facts)

    def file(self, run: str, path: Path, folder: str = "") -> None:
        files: Sequence[Path] = sorted(path.rglob("*")) if path.is_dir() else [path]
        base = path if path.is_dir() else path.parent
        for item in files:
            if item.is_file():
                self.runs[run].artifacts["/".join(filter(None, (folder, item.relative_to(base).as_posix())))] = str(item)

    def text(self, run: str, text: str, name: str) -> None:
        self.runs[run].artifacts[name] = text

    def close(self, run: str, status: str, reason: str = "") -> None:
        if self.runs[run].status != "RUNNING":
            raise TrialError(f"a run must be closed once, got {run} which is {self.runs[run].status}: open a new one")
        self.runs[run].status = status
        if reason:
            self.runs[run].tags[REASON_TAG] = reason

    def reparent(self, old: str, new: str) -> None:
        for run in self.runs.values():
            if run.parent == old and run.status == "FINISHED":
                run.parent = new


def _redacted(uri: str | None) -> str:
    """A store's address without user and password."""
    shown = uri or os.environ.get("MLFLOW_TRACKING_URI") or "the default store"
    scheme, mark, rest = shown.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else shown


def mark_empty(run: str, reason: str) -> None:
    """Mark a run for which nothing ran (refused parameters, plan=true); the next command's start deletes it.

    `mlflow run` makes its run before it starts the program and ends it afterwards, so it cannot be deleted in between.
    """
    import mlflow

    mlflow.MlflowClient().set_tag(run, EMPTY_TAG, reason[:MAX_TAG])
