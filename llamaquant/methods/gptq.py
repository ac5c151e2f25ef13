"""GPTQ (Frantar et al. 2023), through gptqmodel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llamaquant.errors import BackendError, ConfigError
from llamaquant.methods.base import Method, MethodConfig, Source
from llamaquant.model import LoadedModel


@dataclass(frozen=True)
class GPTQConfig(MethodConfig):
    """Post-training quantization with second-order error correction.

    Attributes:
        gptq_bits: 2, 3, 4 or 8 bits per block weight.
        gptq_group_size: input columns that share a scale; -1 is one group per row.
        gptq_desc_act: quantize columns by decreasing activation size.
        gptq_sym: symmetric grid (no zero point of its own).
        gptq_damp_percent: share of the mean Hessian diagonal that is added to it, in (0, 1).
    """

    prefix: ClassVar[str] = "gptq"
    gptq_bits: int = 4
    gptq_group_size: int = 128
    gptq_desc_act: bool = False
    gptq_sym: bool = True
    gptq_damp_percent: float = 0.05

    def __post_init__(self) -> None:
        if self.gptq_bits not in (2, 3, 4, 8) or isinstance(self.gptq_bits, bool):
            raise ConfigError(f"gptq_bits must be 2, 3, 4 or 8, got {self.gptq_bits!r}: use 4")
        if self.gptq_group_size not in (32, 64, 128, -1):
            raise ConfigError(f"gptq_group_size must be 32, 64, 128 or -1 (whole row), got {self.gptq_group_size!r}: use 128")
        for name in ("gptq_desc_act", "gptq_sym"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}: use true or false")
        if not (isinstance(self.gptq_damp_percent, int | float) and 0 < self.gptq_damp_percent < 1):
            raise ConfigError(f"gptq_damp_percent must lie in (0, 1), got {self.gptq_damp_percent!r}: use 0.05")

    @property
    def bits(self) -> int:
        return self.gptq_bits

    def label(self) -> str:
        group = "row" if self.gptq_group_size == -1 else str(self.gptq_group_size)
        flags = ("-act" if self.gptq_desc_act else "") + ("" if self.gptq_sym else "-asym")
        damp = "" if self.gptq_damp_percent == 0.05 else f"-d{self.gptq_damp_percent:g}"
        return f"gptq-{self.gptq_bits}bit-g{group}{flags}{damp}"


class GPTQ(Method):
    """Block linears in packed int32 with fp16 scales, packed zeros and a group index."""

    config_class = GPTQConfig
    needs_calibration = True
    packages = ("gptqmodel",)

    def prepare(self, source: Source, options: GPTQConfig, texts: Sequence[str], out: Path) -> LoadedModel:
        raise BackendError("method gptq must be built into this version, got a version without it: use bnb_4bit or bnb_8bit")

    def linear_bytes(self, options: GPTQConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        groups = 1 if options.gptq_group_size == -1 else math.ceil(columns / options.gptq_group_size)
        return {"block_weights": rows * columns * options.gptq_bits // 8, "scales": groups * rows * 2,
                "zeros": groups * rows * options.gptq_bits // 8, "g_idx": columns * 4}
