"""GPTQ (Frantar et al. 2023), through gptqmodel."""

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
class GPTQConfig(MethodConfig):
    """Post-training quantization with second-order error correction.

    Attributes:
        gptq_bits: 2, 3, 4 or 8 bits per block weight.
        gptq_group_size: input columns that share a scale; -1 is one group per row.
        gptq_desc_act: quantize columns by decreasing activation size.
        gptq_sym: symmetric grid (no zero point of its own).
        gptq_damp_percent: share of the mean Hessian diagonal that is added to it, in (0, 1).
        gptq_head_bits: 16, 8 or 4 bits of embedding and head.
    """

    prefix: ClassVar[str] = "gptq"
    gptq_bits: int = 4
    gptq_group_size: int = 128
    gptq_desc_act: bool = False
    gptq_sym: bool = True
    gptq_damp_percent: float = 0.05
    gptq_head_bits: int = 16

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
        check_head_bits("gptq_head_bits", self.gptq_head_bits)

    @property
    def bits(self) -> int:
        return self.gptq_bits

    def label(self) -> str:
        group = "row" if self.gptq_group_size == -1 else str(self.gptq_group_size)
        flags = ("-act" if self.gptq_desc_act else "") + ("" if self.gptq_sym else "-asym")
        damp = "" if self.gptq_damp_percent == 0.05 else f"-d{self.gptq_damp_percent:g}"
        return f"gptq-{self.gptq_bits}bit-g{group}{flags}{damp}{self.head_label}"


class GPTQ(Method):
    """Block linears in packed int32 with fp16 scales, packed zeros and a group index."""

    config_class = GPTQConfig
    needs_calibration = True
    packages = ("gptqmodel",)

    def prepare(self, source: Source, options: GPTQConfig, texts: Sequence[str], out: Path) -> LoadedModel:
        shape = ModelShape.from_folder(source.folder)
        settings = _gptqmodel.config_class("GPTQConfig")(
            bits=options.gptq_bits, group_size=options.gptq_group_size, desc_act=options.gptq_desc_act,
            sym=options.gptq_sym, damp_percent=float(options.gptq_damp_percent),
            act_group_aware=_reorders_groups(options, shape), offload_to_disk=False)
        loaded = _gptqmodel.quantize(source, settings, texts, out, _gptqmodel.working_dtype(source))
        return pack_head(loaded, out, options.head_bits)

    def load(self, checkpoint: Path, device: str, dtype: str) -> LoadedModel:
        return load_with_packed_head(
            checkpoint, device, dtype, lambda **kwargs: _gptqmodel.load(checkpoint, device, dtype, "gptq_torch", **kwargs))

    def linear_bytes(self, options: GPTQConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        return _gptqmodel.gptq_format_bytes(rows, columns, options.gptq_bits, options.gptq_group_size)

    def check_shape(self, options: GPTQConfig, shape: ModelShape) -> None:
        _gptqmodel.check_widths("gptq", shape)
        check_head(options.head_bits, shape)


def _reorders_groups(options: GPTQConfig, shape: ModelShape) -> bool:
    """Whether whole groups are quantized in the order of their activations, which costs nothing at inference.

    The vendor refuses it together with `desc_act` and for one group per row, and it needs whole groups.
    """
    group = options.gptq_group_size
    return not options.gptq_desc_act and group != -1 and all(columns % group == 0 for _, columns in shape.block_linears.values())
