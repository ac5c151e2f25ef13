"""Train the embedded demo as a tracked run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from llamaquant.demo.train import TrainConfig, TrainResult, train_demo
from llamaquant.environment import describe
from llamaquant.errors import ConfigError
from llamaquant.runner import exit_on_signals
from llamaquant.tracking import Tracker, tracked


def train_tracked(config: TrainConfig, out: Path, tracker: Tracker) -> TrainResult:
    """Train into the folder `out`, which must be new or empty; the run carries loss, scores and the checkpoint."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out must be a new or empty folder, got {str(out)!r}: name another")
    params = {f"config.{key}": json.dumps(value) if isinstance(value, dict) else str(value)
              for key, value in dataclasses.asdict(config).items()}
    with exit_on_signals(), tracked(tracker, "train_demo", params=params, tags=describe()) as run:
        out.mkdir(parents=True, exist_ok=True)
        result = train_demo(config, out, lambda step, values: tracker.log(
            run, metrics={f"train/{key}": value for key, value in values.items()}, step=step))
        tracker.log(run, metrics={
            "quality/f1_last_turn": result.f1_last_turn, "quality/em_last_turn": result.em_last_turn,
            "quality/f1": result.f1_all_turns, "train/loss_nats_per_token": result.train_loss, "train/seconds": result.seconds})
        tracker.file(run, out, "checkpoint")
    return result
