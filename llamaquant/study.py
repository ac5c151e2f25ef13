"""The only place that knows Optuna: a sweep is a study of enqueued trials, each config exactly once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llamaquant.config import ExperimentConfig, digest
from llamaquant.coqa.data import Story
from llamaquant.environment import has_nvidia_driver, version_of
from llamaquant.errors import BackendError, ConfigError, LlamaQuantError, TrialError
from llamaquant.judging import judge
from llamaquant.methods import QuantMethod, get_method
from llamaquant.model import ModelShape
from llamaquant.runner import RunOptions, check_disk, dataset_facts, exit_on_signals, only_user_of, run_tracked
from llamaquant.sources import ModelSource, resolve_model, resolve_stories
from llamaquant.tracking import Tracker, tracked

if TYPE_CHECKING:
    import optuna

POSITION_ATTR, CONFIG_ATTR, OUTCOME_ATTR, PARENT_ATTR = "position", "config", "outcome", "parent_run_id"
SHARED = ("model", "revision", "weights", "dataset", "dataset_revision", "turns", "limit", "seed")
OUTCOME_KEYS = ("run_id", "metrics", "checkpoint", "reason")


@dataclass(frozen=True)
class Outcome:
    """What became of one config: metrics of its finished run, or the reason why there are none."""

    config: ExperimentConfig
    run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    reason: str = ""
    verdict: str = ""
    sentence: str = ""

    @property
    def finished(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class SweepSummary:
    """All outcomes of one command, in the order of the configs."""

    parent_run_id: str
    outcomes: tuple[Outcome, ...]
    experiment_id: str = ""

    @property
    def finished(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.finished)

    @property
    def best(self) -> Outcome | None:
        """Highest F1 (all turns where they were scored), fewest bits among equals; None where nothing was scored."""
        scored = [o for o in self.finished if "quality/f1_last_turn" in o.metrics]
        if not scored:
            return None
        metric = "quality/f1" if all("quality/f1" in o.metrics for o in scored) else "quality/f1_last_turn"
        return max(scored, key=lambda o: (o.metrics[metric], -o.metrics["cost/bits_per_param"]))


class Reporter:
    """Told what happens; the default is silent. The terminal and tests subclass it."""

    def started(self, configs: Sequence[ExperimentConfig], done: int) -> None:
        """The study begins, with `done` configs finished earlier."""

    def config_started(self, position: int, config: ExperimentConfig) -> None:
        """The config at `position` begins."""

    def progress(self, position: int, what: str, share: float) -> None:
        """A step of the config at `position` is finished to `share` (0..1)."""

    def config_ended(self, position: int, outcome: Outcome) -> None:
        """The config at `position` has its outcome."""


@dataclass(frozen=True)
class Plan:
    """What a command will do, known before it is done.

    Attributes:
        predicted_bits: stored bits per parameter of the whole model, by config.
        checkpoint_bytes: tensor bytes of each checkpoint.
        stories: evaluated per config; empty for dummy weights.
    """

    configs: tuple[ExperimentConfig, ...]
    source: ModelSource
    stories: tuple[Story, ...]
    predicted_bits: tuple[float, ...]
    checkpoint_bytes: tuple[int, ...]

    @property
    def shape(self) -> ModelShape:
        return self.source.shape

    @property
    def baseline(self) -> ExperimentConfig | None:
        """The first unquantized config: what all others are compared with."""
        return next((c for c in self.configs if c.quantization.method == QuantMethod.NONE), None)

    def disk_bytes(self, log_model: str) -> int:
        """Checkpoints, and their copies in the artifact store."""
        copies = {"all": sum(self.checkpoint_bytes), "best": max(self.checkpoint_bytes), "none": 0}[log_model]
        return sum(self.checkpoint_bytes) + copies


def make_plan(configs: Sequence[ExperimentConfig]) -> Plan:
    """Resolve names, check every config against the model, predict bits; raises before anything expensive."""
    if not configs:
        raise ConfigError("a sweep must have configs, got none: name a method or presets")
    _check_distinct(configs)
    first = configs[0]
    source = resolve_model(first.model, first.revision, first.weights)
    stories = [] if source.dummy else resolve_stories(first.dataset, first.dataset_revision, first.limit, first.seed)
    sizes = []
    for config in configs:
        method, options = get_method(config.quantization.method), config.quantization.options
        _check_machine(config)
        method.check_shape(options, source.shape)
        dtype = config.dtype if config.dtype != "auto" else "bf16"  # fp16 on old GPUs: as large
        sizes.append(sum(method.predicted_bytes(options, source.shape, dtype).values()))
    return Plan(configs=tuple(configs), source=source, stories=tuple(stories), checkpoint_bytes=tuple(sizes),
                predicted_bits=tuple(8.0 * size / source.shape.parameters for size in sizes))


def _check_distinct(configs: Sequence[ExperimentConfig]) -> None:
    """ConfigError where two configs are the same, or where they are not about the same model and stories."""
    names = [config.name for config in configs]
    for values, what in (([config.fingerprint() for config in configs], "settings"), (names, "name")):
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ConfigError(f"configs of a sweep must differ, got {names[index]!r} and {names[values.index(value)]!r} with the "
                                  f"same {what}: remove or rename one")
    for config in configs[1:]:
        for field_name in SHARED:
            one, other = getattr(configs[0], field_name), getattr(config, field_name)
            if one != other:
                raise ConfigError(f"configs of a sweep must share {field_name}, got {one!r} and {other!r}: run two sweeps")


def _check_machine(config: ExperimentConfig) -> None:
    """BackendError for a device or a library that is plainly not here, without waiting for torch to say so."""
    if config.device.startswith("cuda") and not has_nvidia_driver():
        raise BackendError(f"device must exist on this machine, got {config.device!r} without an NVIDIA driver: use device=cpu or auto")
    for package in get_method(config.quantization.method).packages:
        if version_of(package) == "absent":
            raise BackendError(f"method {config.quantization.method} needs {package}, got an environment without it: make env "
                               "(a C compiler and Python.h are needed; see `mlflow run . -e doctor`)")


def run_configs(command: str, plan: Plan, tracker: Tracker, options: RunOptions, reporter: Reporter | None = None,
                tags: dict[str, str] | None = None) -> SweepSummary:
    """Run every config of `plan` as a child of one parent run; failing configs end FAILED and the others go on.

    The same call again goes on where an interrupted one stopped; a study that is complete is begun anew.
    """
    reporter = reporter or Reporter()
    check_disk(options.output, plan.disk_bytes(options.log_model))
    shared = {key: value for key, value in plan.configs[0].to_params().items()
              if key.removeprefix("config.") in (*SHARED, "device")}
    parent_tags = {"llamaquant.command": command, "llamaquant.weights": plan.configs[0].weights, **(tags or {})}
    with only_user_of(options.output), exit_on_signals(), tracked(tracker, command, params=shared, tags=parent_tags) as parent:
        study = _open_study(command, plan, options.output, tracker, parent)
        tracker.log(parent, tags={"optuna.study": study.study_name})
        if plan.stories:
            tracker.dataset(parent, dataset_facts(plan.configs[0], list(plan.stories)))
        outcomes = _work(study, plan, tracker, parent, options, reporter)
        summary = SweepSummary(parent, outcomes, getattr(tracker, "experiment_id", ""))
        _log_summary(tracker, parent, summary, options)
        if not summary.finished:
            raise TrialError(f"at least one config must finish, got {len(outcomes)} failures; the first: {outcomes[0].reason}")
    return summary


def _open_study(command: str, plan: Plan, output: Path, tracker: Tracker, parent: str) -> optuna.Study:
    """The unfinished study of these configs, or a new one with every config enqueued once."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed config is told in one line, with its reason
    database = output.resolve() / "study.db"
    base = f"{command}-{digest([plan.source.identity, *(config.fingerprint() for config in plan.configs)])}"
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
        earlier = [name for name in optuna.get_all_study_names(storage) if name.rpartition(".")[0] == base]
    except Exception as error:
        raise BackendError(f"the study store must be an Optuna database, got {database.name} ({type(error).__name__}): move it "
                           "away or use another output") from None
    for name in earlier:
        study = optuna.load_study(study_name=name, storage=storage)
        if len(_finished(study, plan)) < len(plan.configs):
            _resume(study, plan, tracker, parent)
            return study
    study = optuna.create_study(study_name=f"{base}.{len(earlier) + 1}", storage=storage, direction="minimize",
                                sampler=optuna.samplers.RandomSampler(seed=plan.configs[0].seed))
    study.set_user_attr(PARENT_ATTR, parent)
    for position in range(len(plan.configs)):
        _enqueue(study, plan, position)
    return study


def _enqueue(study: optuna.Study, plan: Plan, position: int) -> None:
    attrs = {POSITION_ATTR: position, CONFIG_ATTR: plan.configs[position].to_params()}
    study.enqueue_trial({"config": position}, user_attrs=attrs)


def _resume(study: optuna.Study, plan: Plan, tracker: Tracker, parent: str) -> None:
    """Take over what an interrupted command finished; what it had begun is begun again.

    Ctrl-C leaves its trial failed without an outcome, SIGKILL leaves it running.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    waiting = {trial.user_attrs[POSITION_ATTR] for trial in study.get_trials(states=(TrialState.WAITING,))}
    for position in sorted(set(range(len(plan.configs))) - waiting - set(_finished(study, plan))):
        _enqueue(study, plan, position)
    tracker.reparent(study.user_attrs[PARENT_ATTR], parent)
    study.set_user_attr(PARENT_ATTR, parent)


def _work(study: optuna.Study, plan: Plan, tracker: Tracker, parent: str, options: RunOptions,
          reporter: Reporter) -> tuple[Outcome, ...]:
    """Run what is waiting, one after the other; the outcomes in the order of the configs."""
    import optuna

    outcomes = _finished(study, plan)
    reporter.started(plan.configs, len(outcomes))

    def objective(trial: optuna.Trial) -> float:
        position = trial.suggest_int("config", 0, len(plan.configs) - 1)
        config = plan.configs[position]
        reporter.config_started(position, config)
        outcome = _run_one(config, position, plan, tracker, parent, options, reporter)
        trial.set_user_attr(OUTCOME_ATTR, {key: getattr(outcome, key) for key in OUTCOME_KEYS})
        if outcome.finished:
            tracker.log(outcome.run_id, tags={"optuna.study": study.study_name, "optuna.trial": str(trial.number)})
        outcomes[position] = outcome
        reporter.config_ended(position, outcome)
        if not outcome.finished:
            raise TrialError(outcome.reason)
        return outcome.metrics["cost/bits_per_param"]

    waiting = sum(trial.state == optuna.trial.TrialState.WAITING for trial in study.trials)
    if waiting:
        study.optimize(objective, n_trials=waiting, catch=(LlamaQuantError,))
    return tuple(_judged(outcomes[position], plan, tracker, options) for position in range(len(plan.configs)))


def _judged(outcome: Outcome, plan: Plan, tracker: Tracker, options: RunOptions) -> Outcome:
    """The outcome with its interval and verdict, which are also logged to its run."""
    judgement = judge(outcome.config, plan.baseline, options) if outcome.finished else None
    if judgement is None:
        return outcome
    tracker.log(outcome.run_id, metrics=judgement.metrics, tags=judgement.tags)
    return dataclasses.replace(outcome, metrics=outcome.metrics | judgement.metrics, verdict=judgement.verdict,
                               sentence=judgement.sentence)


def _run_one(config: ExperimentConfig, position: int, plan: Plan, tracker: Tracker, parent: str, options: RunOptions,
             reporter: Reporter) -> Outcome:
    try:
        result = run_tracked(config, tracker, parent, options, position=position, stories=list(plan.stories),
                             baseline=plan.baseline.fingerprint() if plan.baseline else "",
                             progress=lambda what, share: reporter.progress(position, what, share))
    except LlamaQuantError as error:
        return Outcome(config, reason=str(error))
    return Outcome(config, result.run_id, result.to_metrics(), result.checkpoint)


def _finished(study: optuna.Study, plan: Plan) -> dict[int, Outcome]:
    """Outcomes of earlier calls; a config whose trial was begun again has none yet."""
    ended = [trial for trial in study.trials if trial.state.is_finished() and OUTCOME_ATTR in trial.user_attrs]
    positions = {trial.user_attrs[POSITION_ATTR]: trial for trial in ended}
    return {position: Outcome(plan.configs[position], **trial.user_attrs[OUTCOME_ATTR])
            for position, trial in positions.items()}


def _log_summary(tracker: Tracker, parent: str, summary: SweepSummary, options: RunOptions) -> None:
    table = [{"name": o.config.name, "run_id": o.run_id, "reason": o.reason, "verdict": o.verdict, "sentence": o.sentence, **o.metrics}
             for o in summary.outcomes]
    tracker.text(parent, json.dumps(table, indent=1) + "\n", "outcomes.json")
    tracker.log(parent, metrics={"study/configs": len(summary.outcomes), "study/finished": len(summary.finished)})
    tracker.file(parent, options.output.resolve() / "evaluation", "evaluation")
    best = summary.best
    if best is None:
        return
    tracker.log(parent, tags={"llamaquant.best_run": best.run_id, "llamaquant.best": best.config.name})
    if options.log_model == "best":
        tracker.file(best.run_id, Path(best.checkpoint), "checkpoint")


def run_experiment(config: ExperimentConfig, *, tracker: Tracker | None = None,
                   options: RunOptions | None = None) -> Outcome:
    """Run one experiment, tracked; the outcome has its metrics and run id.

    Raises:
        LlamaQuantError: why there is no result.
    """
    summary = run_sweep([config], tracker=tracker, options=options, command="main")
    return summary.outcomes[0]


def run_sweep(configs: Sequence[ExperimentConfig], eval_limit: int | None = None, *, tracker: Tracker | None = None,
              options: RunOptions | None = None, command: str = "sweep", reporter: Reporter | None = None) -> SweepSummary:
    """Run all `configs` as one study under one parent run; `eval_limit` overrides their number of stories."""
    if eval_limit is not None:
        configs = [dataclasses.replace(config, limit=eval_limit) for config in configs]
    plan = make_plan(list(configs))
    if tracker is None:
        from llamaquant.tracking import MlflowTracker

        tracker = MlflowTracker()
    return run_configs(command, plan, tracker, options or RunOptions(), reporter)
