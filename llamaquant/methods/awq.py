"""AWQ (Lin et al. 2024), through gptqmodel."""

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
class AWQConfig(MethodConfig):
    """Activation-aware scaling before rounding to 4 bits.

    Attributes:
        awq_bits: 4; the format has no other width.
        awq_group_size: input columns that share a scale.
        awq_zero_point: asymmetric grid with a zero point per group.
    """

    prefix: ClassVar[str] = "awq"
    awq_bits: int = 4
    awq_group_size: int = 128
    awq_zero_point: bool = True

    def __post_init__(self) -> None:
        if self.awq_bits != 4:
            raise ConfigError(f"awq_bits must be 4, got {self.awq_bits!r}: use method=gptq for other widths")
        if self.awq_group_size not in (32, 64, 128):
            raise ConfigError(f"awq_group_size must be 32, 64 or 128, got {self.awq_group_size!r}: use 128")
        if not isinstance(self.awq_zero_point, bool):
            raise ConfigError(f"awq_zero_point must be true or false, got {self.awq_zero_point!r}: use true or false")

    @property
    def bits(self) -> int:
        return self.awq_bits

    def label(self) -> str:
        return f"awq-4bit-g{self.awq_group_size}" + ("" if self.awq_zero_point else "-sym")


class AWQ(Method):
    """Block linears in packed int32 with fp16 scales and packed zeros."""

    config_class = AWQConfig
    needs_calibration = True
    packages = ("gptqmodel",)

    def prepare(self, source: Source, options: AWQConfig, texts: Sequence[str], out: Path) -> LoadedModel:
        raise BackendError("method awq must be built into this version, got a version without it: use bnb_4bit or bnb_8bit")

    def linear_bytes(self, options: AWQConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        groups = math.ceil(columns / options.awq_group_size)
        return {"block_weights": rows * columns // 2, "scales": groups * rows * 2, "zeros": groups * rows // 2}
