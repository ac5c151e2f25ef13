"""What a person at a terminal sees: the plan, progress, the table, where to look."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llamaquant.config import ExperimentConfig
from llamaquant.doctor import Finding
from llamaquant.environment import has_nvidia_driver
from llamaquant.runner import RunOptions
from llamaquant.sources import question_count
from llamaquant.study import Outcome, Plan, Reporter, SweepSummary

TOKENS_PER_QUESTION = 450
"""Prompt of a last CoQA turn in tokens, a rough mean."""
CPU_FLOPS_PER_CORE = 1.0e10
GPU_FLOPS = 2.0e13
OVERHEAD_S = 12.0
"""Two processes, loading, memory and latency of a small model."""


def console() -> Console:
    """Standard output; 120 columns where it is not a terminal, so that logs keep their tables."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def estimate_seconds(plan: Plan) -> float:
    """Rough time of the whole command (a factor of three either way): FLOPs of the prompts over a guessed rate."""
    gpu = plan.configs[0].device.startswith("cuda") or (plan.configs[0].device == "auto" and has_nvidia_driver())
    rate = GPU_FLOPS if gpu else CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)
    work = 2.0 * plan.shape.parameters * TOKENS_PER_QUESTION * (len(plan.stories) + 20)
    return len(plan.configs) * (OVERHEAD_S + work / rate)


def print_plan(plan: Plan, log_model: str) -> None:
    """Configs, predicted bits, disk, questions, time; nothing is run."""
    out = console()
    table = Table(title="plan", title_justify="left")
    for column in ("config", "method", "dtype", "bits/param (predicted)", "checkpoint MiB (predicted)"):
        table.add_column(column, justify="left" if column in ("config", "method", "dtype") else "right")
    for config, bits, size in zip(plan.configs, plan.predicted_bits, plan.checkpoint_bytes, strict=True):
        table.add_row(escape(config.name), str(config.quantization.method), config.dtype, f"{bits:.3f}", f"{size / 2**20:.2f}")
    out.print(table)
    out.print(f"model {escape(plan.configs[0].model)}: {plan.shape.parameters / 1e6:.2f} M parameters; "
              f"{len(plan.stories)} stories, {question_count(list(plan.stories))} questions per config")
    out.print(f"disk: {plan.disk_bytes(log_model) / 2**20:.1f} MiB (log_model={log_model}); time: about "
              f"{_duration(estimate_seconds(plan))}, a rough guess")


def print_disk(plan: Plan, options: RunOptions) -> None:
    """What will be run and the disk that it needs, before it starts."""
    console().print(
        f"{len(plan.configs)} configs of {escape(plan.configs[0].model)}, {len(plan.stories) or 'no'} stories each; disk needed: "
        f"{plan.disk_bytes(options.log_model) / 2**20:.1f} MiB (log_model={options.log_model}); time: about "
        f"{_duration(estimate_seconds(plan))}, a rough guess", soft_wrap=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class TerminalReporter(Reporter):
    """A progress bar on a terminal; one line per config elsewhere."""

    def __init__(self) -> None:
        self._console = console()
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                                  console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("configs", total=None)
        self._step = self._progress.add_task("", total=100, visible=False)
        self._started: dict[int, float] = {}
        self._total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def started(self, configs: Sequence[ExperimentConfig], done: int) -> None:
        self._total = len(configs)
        self._progress.update(self._task, total=len(configs), completed=done)
        if done:
            self._console.print(f"{done} of {len(configs)} configs were finished earlier; going on")

    def config_started(self, position: int, config: ExperimentConfig) -> None:
        self._started[position] = time.monotonic()
        self._progress.update(self._step, description=escape(config.name), completed=0, visible=True)

    def progress(self, position: int, what: str, share: float) -> None:
        self._progress.update(self._step, description=what, completed=100 * share)

    def config_ended(self, position: int, outcome: Outcome) -> None:
        self._progress.advance(self._task)
        seconds = time.monotonic() - self._started.get(position, time.monotonic())
        f1 = outcome.metrics.get("quality/f1", outcome.metrics.get("quality/f1_last_turn"))
        said = "measured" if f1 is None else f"F1 {f1:.3f}"
        text = said if outcome.finished else f"FAILED: {outcome.reason}"
        self._console.print(f"\\[{position + 1}/{self._total}] {escape(outcome.config.name)}: {escape(text)} ({seconds:.0f} s)",
                            soft_wrap=True)


COLUMNS = (
    ("bits/param", "cost/bits_per_param", ".2f"), ("MiB", "cost/checkpoint_mib", ".2f"), ("F1", "quality/f1", ".3f"),
    ("95% interval", "", ""), ("F1 last turn", "quality/f1_last_turn", ".3f"), ("verdict", "", ""), ("peak MiB", "", ".0f"),
    ("ms/token", "speed/decode_ms_per_token", ".2f"),
)


def print_summary(summary: SweepSummary) -> None:
    """All outcomes sorted by bits with their verdicts, and the address to open."""
    out = console()
    table = Table(title="results, fewest bits first", title_justify="left")
    table.add_column("config", no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=heading == "95% interval")
    by_bits = sorted(summary.outcomes, key=lambda o: o.metrics.get("cost/bits_per_param", float("inf")))
    for outcome in by_bits:
        cells = [_cell(outcome, *column) for column in COLUMNS] if outcome.finished else ["[red]FAILED[/red]"]
        table.add_row(escape(outcome.config.name), *cells)
    out.print(table)
    for outcome in by_bits:
        if outcome.sentence or not outcome.finished:
            out.print(f"{escape(outcome.config.name)}: {escape(outcome.sentence or 'FAILED: ' + outcome.reason)}", soft_wrap=True)
    out.print(f"parent run {summary.parent_run_id}; run [bold]make ui[/bold], then open "
              f"http://127.0.0.1:5000/#/experiments/{summary.experiment_id}", soft_wrap=True)


def _cell(outcome: Outcome, heading: str, metric: str, form: str) -> str:
    metrics = outcome.metrics
    if heading == "verdict":
        return outcome.verdict or "-"
    if heading == "95% interval":
        if "quality/f1_lower" not in metrics:
            return ""
        return f"{metrics['quality/f1_lower']:.3f}..{metrics['quality/f1_upper']:.3f}"
    if heading == "peak MiB":  # the allocator's on a GPU, the process's on a CPU
        metric = "cost/peak_alloc_mib" if "cost/peak_alloc_mib" in metrics else "cost/peak_rss_mib"
    value = metrics.get(metric)
    return "" if value is None else format(value, form)


def print_findings(findings: Iterable[Finding]) -> bool:
    """One line per check of the doctor as it comes; True where nothing that is needed is missing."""
    out = console()
    healthy = True
    for finding in findings:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.status]
        healthy = healthy and finding.status != "fail"
        cure = f" -> {finding.cure}" if finding.cure else ""
        out.print(f"[{colour}]{finding.status:4}[/{colour}] {finding.name}: {escape(finding.detail + cure)}", soft_wrap=True)
    return healthy
