"""The named experiments and the sweep grids of the study, as data."""

from __future__ import annotations

import difflib
import itertools
from typing import Any

from llamaquant.config import ExperimentConfig, QuantizationConfig
from llamaquant.errors import ConfigError

Spec = dict[str, Any]
"""`method`, its options, and optionally the experiment's `dtype`."""

PRESETS: dict[str, Spec] = {
    "fp16_baseline": {"method": "none", "dtype": "fp16"},
    "bf16_baseline": {"method": "none", "dtype": "bf16"},
    "fp32_baseline": {"method": "none", "dtype": "fp32"},
    "bnb_8bit": {"method": "bnb_8bit"},
    "bnb_4bit_nf4": {"method": "bnb_4bit", "bnb_4bit_quant_type": "nf4"},
    "bnb_4bit_nf4_dq": {"method": "bnb_4bit", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bnb_4bit_fp4": {"method": "bnb_4bit", "bnb_4bit_quant_type": "fp4"},
    "bnb_4bit_fp4_dq": {"method": "bnb_4bit", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "gptq_4bit_g128": {"method": "gptq", "gptq_bits": 4, "gptq_group_size": 128},
    "gptq_3bit_g128": {"method": "gptq", "gptq_bits": 3, "gptq_group_size": 128},
    "awq_4bit_g128": {"method": "awq", "awq_group_size": 128},
    "gptq_4bit_g128_head8": {"method": "gptq", "gptq_bits": 4, "gptq_group_size": 128, "gptq_head_bits": 8},
    "rtn_4bit_g128": {"method": "rtn", "rtn_bits": 4, "rtn_group_size": 128},
    "autoround_3bit_g128": {"method": "autoround", "autoround_bits": 3, "autoround_group_size": 128},
}

BASELINES = ("bf16_baseline", "fp16_baseline")
"""First of every sweep: what everything else is compared with."""

QUICK = ("fp16_baseline", "bnb_8bit", "bnb_4bit_nf4")

GRIDS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "bnb": {
        "bnb_8bit": {},
        "bnb_4bit": {"bnb_4bit_quant_type": ["nf4", "fp4"], "bnb_4bit_use_double_quant": [False, True]},
    },
    "gptq": {"gptq": {"gptq_bits": [8, 4, 3, 2], "gptq_group_size": [128, 64, 32]}},
    "awq": {"awq": {"awq_group_size": [128, 64, 32]}},
    "rtn": {"rtn": {"rtn_bits": [8, 4, 3, 2], "rtn_group_size": [128, 64, 32]}},
    "autoround": {"autoround": {"autoround_bits": [4, 3, 2], "autoround_group_size": [128, 64, 32]}},
}
"""Sweep name -> method -> option -> values; the product of the values is run."""

FULL_GRIDS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "bnb": {
        "bnb_8bit": {"bnb_8bit_threshold": [0.0, 4.0, 6.0, 8.0]},
        "bnb_4bit": {"bnb_4bit_quant_type": ["nf4", "fp4"], "bnb_4bit_use_double_quant": [False, True],
                     "bnb_4bit_compute_dtype": ["fp16", "bf16", "fp32"]},
    },
    "gptq": {"gptq": {"gptq_bits": [8, 4, 3, 2], "gptq_group_size": [128, 64, 32, -1], "gptq_desc_act": [False, True],
                      "gptq_sym": [True, False]}},
    "awq": {"awq": {"awq_group_size": [128, 64, 32], "awq_zero_point": [True, False]}},
    "rtn": {"rtn": {"rtn_bits": [8, 4, 3, 2], "rtn_group_size": [128, 64, 32, -1], "rtn_sym": [True, False],
                    "rtn_head_bits": [16, 8, 4]}},
    "autoround": {"autoround": {"autoround_bits": [8, 4, 3, 2], "autoround_group_size": [128, 64, 32, -1],
                                "autoround_sym": [True, False]}},
}

_BNB_4 = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
_GPTQ = ("gptq_bits", "gptq_group_size", "gptq_desc_act", "gptq_sym")
_RTN = ("rtn_bits", "rtn_group_size", "rtn_sym", "rtn_head_bits")
_AUTOROUND = ("autoround_bits", "autoround_group_size", "autoround_sym", "autoround_iters")
PAIRWISE: tuple[Spec, ...] = (
    {"method": "bnb_8bit"},
    {"method": "bnb_8bit", "bnb_8bit_threshold": 0.0},
    *({"method": "bnb_4bit", **dict(zip(_BNB_4, row, strict=True))} for row in (
        ("nf4", False, "auto"), ("nf4", True, "fp32"), ("fp4", False, "fp32"), ("fp4", True, "auto"))),
    *({"method": "gptq", **dict(zip(_GPTQ, row, strict=True))} for row in (
        (8, 128, False, True), (8, -1, True, False), (4, 128, True, True), (4, 64, False, False),
        (3, 128, False, True), (3, 32, True, False), (2, 64, True, True), (2, 32, False, False))),
    {"method": "gptq", "gptq_bits": 4, "gptq_group_size": 32, "gptq_head_bits": 8},
    *({"method": "awq", "awq_group_size": group, "awq_zero_point": zero} for group, zero in (
        (128, True), (64, False), (32, True))),
    *({"method": "rtn", **dict(zip(_RTN, row, strict=True))} for row in (
        (8, 64, True, 8), (4, -1, False, 4), (3, 128, True, 16), (3, -1, True, 16), (2, 128, False, 16))),
    *({"method": "autoround", **dict(zip(_AUTOROUND, row, strict=True))} for row in (
        (8, 32, False, 50), (3, 64, False, 50), (2, -1, True, 50))),
)
"""Sweep `all`: every value of the study's tables, and every pair of bits x group, bits x grid and group x grid, whichever
method runs it; the full factorial is 200 configs and more."""



def _expand(grid: dict[str, dict[str, list[Any]]]) -> list[Spec]:
    return [{"method": method, **dict(zip(values, point, strict=True))}
            for method, values in grid.items() for point in itertools.product(*values.values())]


def preset(name: str, **settings: Any) -> ExperimentConfig:
    """The named experiment; `settings` are fields of ExperimentConfig that differ from its defaults."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "pick one of them"
        raise ConfigError(f"experiment must be one of {', '.join(PRESETS)}, got {name!r}: {hint}")
    return from_spec(PRESETS[name], name=name, **settings)


def from_spec(spec: Spec, name: str = "", **settings: Any) -> ExperimentConfig:
    """An experiment from data; without a name it takes the method's label."""
    options = {key: value for key, value in spec.items() if key not in ("method", "dtype")}
    quantization = QuantizationConfig(spec["method"], **options)
    if "dtype" in spec:
        settings["dtype"] = spec["dtype"]
    return ExperimentConfig(name=name or quantization.options.label(), quantization=quantization, **settings)


def quick(**settings: Any) -> list[ExperimentConfig]:
    """fp16, 8-bit and 4-bit NF4: the three that everyone asks for first."""
    return [preset(name, **settings) for name in QUICK]


def sweep(method: str, grid: str = "default", **settings: Any) -> list[ExperimentConfig]:
    """Both baselines and every point of a method family's grid; `all` is the pairwise preset, or with `grid=full` all families."""
    grids = {"default": GRIDS, "full": FULL_GRIDS}
    if grid not in grids:
        raise ConfigError(f"grid must be {' or '.join(grids)}, got {grid!r}: use default")
    families = grids[grid]
    if method != "all" and method not in families:
        raise ConfigError(f"method of a sweep must be {', '.join(families)} or all, got {method!r}: use bnb")
    chosen = [preset(name, **settings) for name in BASELINES]
    if method == "all" and grid == "default":
        return chosen + [from_spec(spec, **settings) for spec in PAIRWISE]
    for family in families if method == "all" else (method,):
        chosen += [from_spec(spec, **settings) for spec in _expand(families[family])]
    return chosen
