"""AWQ (Lin et al. 2024), through gptqmodel."""

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
class AWQConfig(MethodConfig):
    """Activation-aware scaling before rounding to 4 bits.

    Attributes:
        awq_bits: 4; the format has no other width.
        awq_group_size: input columns that share a scale.
        awq_zero_point: asymmetric grid with a zero point per group.
        awq_head_bits: 16, 8 or 4 bits of embedding and head.
    """

    prefix: ClassVar[str] = "awq"
    awq_bits: int = 4
    awq_group_size: int = 128
    awq_zero_point: bool = True
    awq_head_bits: int = 16

    def __post_init__(self) -> None:
        if self.awq_bits != 4:
            raise ConfigError(f"awq_bits must be 4, got {self.awq_bits!r}: use method=gptq for other widths")
        if self.awq_group_size not in (32, 64, 128):
            raise ConfigError(f"awq_group_size must be 32, 64 or 128, got {self.awq_group_size!r}: use 128")
        if not isinstance(self.awq_zero_point, bool):
            raise ConfigError(f"awq_zero_point must be true or false, got {self.awq_zero_point!r}: use true or false")
        check_head_bits("awq_head_bits", self.awq_head_bits)

    @property
    def bits(self) -> int:
        return self.awq_bits

    def label(self) -> str:
        return f"awq-4bit-g{self.awq_group_size}" + ("" if self.awq_zero_point else "-sym") + self.head_label


class AWQ(Method):
    """Block linears in packed int32 with 16-bit scales and packed zeros."""

    config_class = AWQConfig
    needs_calibration = True
    packages = ("gptqmodel",)

    def prepare(self, source: Source, options: AWQConfig, texts: Sequence[str], out: Path) -> LoadedModel:
        settings = _gptqmodel.config_class("AWQConfig")(
            bits=options.awq_bits, group_size=options.awq_group_size, sym=not options.awq_zero_point, offload_to_disk=False)
        # The portable kernel packs on every device; the vendor's default one needs CUDA, and may compile itself first.
        loaded = _gptqmodel.quantize(source, settings, texts, out, "fp16" if source.dtype == "fp32" else source.dtype,
                                     backend="awq_torch")  # the format's layers refuse fp32
        return pack_head(loaded, out, options.head_bits)

    def load(self, checkpoint: Path, device: str, dtype: str) -> LoadedModel:
        return load_with_packed_head(
            checkpoint, device, dtype, lambda **kwargs: _gptqmodel.load(checkpoint, device, dtype, "torch_awq", **kwargs))

    def linear_bytes(self, options: AWQConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        groups = _gptqmodel.groups_of(columns, options.awq_group_size)
        return {"block_weights": rows * columns // 2, "scales": groups * rows * 2, "zeros": groups * rows // 2}

    def check_shape(self, options: AWQConfig, shape: ModelShape) -> None:
        _gptqmodel.check_widths("awq", shape)
        check_head(options.head_bits, shape)
        for name, (rows, columns) in shape.block_linears.items():
            if columns % options.awq_group_size:
                raise ConfigError(f"awq_group_size must divide the inputs of every block linear, got {options.awq_group_size} "
                                  f"with {rows} x {columns} in {name}: use a smaller group, or method=gptq")
