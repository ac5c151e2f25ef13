"""llamaquant: how few bits can this model have? A decision that can be defended.

    from llamaquant import ExperimentConfig, QuantizationConfig, QuantMethod, run_experiment, run_sweep

Importing this package imports no torch, no MLflow and no vendor library; names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamaquant.config import CalibrationConfig, ExperimentConfig, QuantizationConfig
    from llamaquant.errors import BackendError, ConfigError, DataError, LlamaQuantError, TrialError
    from llamaquant.methods import QuantMethod
    from llamaquant.presets import PRESETS, preset, quick, sweep
    from llamaquant.runner import RunOptions
    from llamaquant.study import Outcome, SweepSummary, run_experiment, run_sweep

__version__ = "0.1.0"

_HOMES = {
    "config": ("CalibrationConfig", "ExperimentConfig", "QuantizationConfig"),
    "errors": ("BackendError", "ConfigError", "DataError", "LlamaQuantError", "TrialError"),
    "methods": ("QuantMethod",),
    "presets": ("PRESETS", "preset", "quick", "sweep"),
    "runner": ("RunOptions",),
    "study": ("Outcome", "SweepSummary", "run_experiment", "run_sweep"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "PRESETS", "BackendError", "CalibrationConfig", "ConfigError", "DataError", "ExperimentConfig", "LlamaQuantError",
    "Outcome", "QuantMethod", "QuantizationConfig", "RunOptions", "SweepSummary", "TrialError", "preset", "quick",
    "run_experiment", "run_sweep", "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'llamaquant' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llamaquant.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
