"""Round to nearest, through gptqmodel: no calibration at all. The control that shows what calibration buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llamaquant.errors import ConfigError
from llamaquant.methods import _gptqmodel
from llamaquant.methods._packed_head import check_head, check_head_bits, load_with_packed_head, pack_head
from llamaquant.methods.base import Method, MethodConfig, Source
from llamaquant.model import LoadedModel, ModelShape


@dataclass(frozen=True)
class RTNConfig(MethodConfig):
    """Every weight rounds to the nearest point of its group's grid.

    Attributes:
        rtn_bits: 2, 3, 4 or 8 bits per block weight.
        rtn_group_size: input columns that share a scale; -1 is one group per row.
        rtn_sym: symmetric grid (no zero point of its own).
        rtn_head_bits: 16, 8 or 4 bits of embedding and head.
    """

    prefix: ClassVar[str] = "rtn"
    rtn_bits: int = 4
    rtn_group_size: int = 128
    rtn_sym: bool = True
    rtn_head_bits: int = 16

    def __post_init__(self) -> None:
        if self.rtn_bits not in (2, 3, 4, 8) or isinstance(self.rtn_bits, bool):
            raise ConfigError(f"rtn_bits must be 2, 3, 4 or 8, got {self.rtn_bits!r}: use 4")
        if self.rtn_group_size not in (32, 64, 128, -1):
            raise ConfigError(f"rtn_group_size must be 32, 64, 128 or -1 (whole row), got {self.rtn_group_size!r}: use 128")
        if not isinstance(self.rtn_sym, bool):
            raise ConfigError(f"rtn_sym must be true or false, got {self.rtn_sym!r}: use true or false")
        check_head_bits("rtn_head_bits", self.rtn_head_bits)

    @property
    def bits(self) -> int:
        return self.rtn_bits

    def label(self) -> str:
        group = "row" if self.rtn_group_size == -1 else str(self.rtn_group_size)
        return f"rtn-{self.rtn_bits}bit-g{group}" + ("" if self.rtn_sym else "-asym") + self.head_label


class RTN(Method):
    """The same file format as GPTQ's."""

    config_class = RTNConfig
    packages = ("gptqmodel",)

    def prepare(self, source: Source, options: RTNConfig, texts: Sequence[str], out: Path) -> LoadedModel:
        settings = _gptqmodel.config_class("RTNConfig")(
            bits=options.rtn_bits, group_size=options.rtn_group_size, sym=options.rtn_sym, offload_to_disk=False)
        loaded = _gptqmodel.quantize(source, settings, [], out, _gptqmodel.working_dtype(source))
        return pack_head(loaded, out, options.head_bits)

    def load(self, checkpoint: Path, device: str, dtype: str) -> LoadedModel:
        return load_with_packed_head(
            checkpoint, device, dtype, lambda **kwargs: _gptqmodel.load(checkpoint, device, dtype, "gptq_torch", **kwargs))

    def linear_bytes(self, options: RTNConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        return _gptqmodel.gptq_format_bytes(rows, columns, options.rtn_bits, options.rtn_group_size)

    def check_shape(self, options: RTNConfig, shape: ModelShape) -> None:
        _gptqmodel.check_widths("rtn", shape)
        check_head(options.head_bits, shape)
