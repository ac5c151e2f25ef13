"""bitsandbytes: LLM.int8() (Dettmers et al. 2022) and 4-bit NF4/FP4 with double quantization (QLoRA, Dettmers et al. 2023)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llamaquant.errors import BackendError, ConfigError
from llamaquant.methods.base import Method, MethodConfig, Source, load_pretrained, save_pretrained
from llamaquant.model import LoadedModel, torch_dtype

QUANT_BLOCK = 64
"""Weights per absmax in bitsandbytes' 4-bit formats."""
NESTED_BLOCK = 256
"""Absmax values per nested absmax under double quantization."""
QUANT_STATE_BYTES = 86
"""The packed JSON tensor that bitsandbytes stores per 4-bit layer (shape, dtype, block size): 83..111 bytes seen."""


@dataclass(frozen=True)
class Int8Config(MethodConfig):
    """LLM.int8().

    Attributes:
        bnb_8bit_threshold: activations beyond this magnitude are outliers and multiplied in 16 bits; 0 turns that off.
    """

    prefix: ClassVar[str] = "bnb_8bit"
    bnb_8bit_threshold: float = 6.0

    def __post_init__(self) -> None:
        if not (isinstance(self.bnb_8bit_threshold, int | float) and 0 <= self.bnb_8bit_threshold <= 1000):
            raise ConfigError(f"bnb_8bit_threshold must lie in 0..1000, got {self.bnb_8bit_threshold!r}: 6.0 is the paper's")

    @property
    def bits(self) -> int:
        return 8

    def label(self) -> str:
        return "bnb-8bit" + ("" if self.bnb_8bit_threshold == 6.0 else f"-t{self.bnb_8bit_threshold:g}")


@dataclass(frozen=True)
class FourBitConfig(MethodConfig):
    """4 bits per weight in blocks of 64 with one absmax each.

    Attributes:
        bnb_4bit_quant_type: `nf4` (quantiles of a normal distribution) or `fp4`.
        bnb_4bit_use_double_quant: quantize the absmax values too (0.37 bits per weight less).
        bnb_4bit_compute_dtype: dtype of the matrix products; `auto` is the experiment's dtype.
    """

    prefix: ClassVar[str] = "bnb_4bit"
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise ConfigError(f"bnb_4bit_quant_type must be nf4 or fp4, got {self.bnb_4bit_quant_type!r}: use nf4")
        if not isinstance(self.bnb_4bit_use_double_quant, bool):
            raise ConfigError(f"bnb_4bit_use_double_quant must be true or false, got {self.bnb_4bit_use_double_quant!r}: "
                              "use true or false")
        if self.bnb_4bit_compute_dtype not in ("auto", "fp16", "bf16", "fp32"):
            raise ConfigError(f"bnb_4bit_compute_dtype must be auto, fp16, bf16 or fp32, got {self.bnb_4bit_compute_dtype!r}: "
                              "use auto")

    @property
    def bits(self) -> int:
        return 4

    def label(self) -> str:
        double = "-dq" if self.bnb_4bit_use_double_quant else ""
        compute = "" if self.bnb_4bit_compute_dtype == "auto" else f"-{self.bnb_4bit_compute_dtype}"
        return f"bnb-4bit-{self.bnb_4bit_quant_type}{double}{compute}"


def _quiet() -> None:
    """bitsandbytes logs one line per layer and forward about casts; keep warnings only."""
    for name in ("bitsandbytes", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import warnings

    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")


class _BitsAndBytes(Method):
    packages = ("bitsandbytes",)

    def _quantization_config(self, options: Any, dtype: str) -> Any:
        raise NotImplementedError

    def prepare(self, source: Source, options: Any, texts: Sequence[str], out: Path) -> LoadedModel:
        _quiet()
        try:
            import bitsandbytes  # noqa: F401 - fails here with its own reason where it cannot run
        except Exception as error:
            raise BackendError(f"bitsandbytes must be importable, got {error}: pip install -r requirements.txt") from error
        loaded = load_pretrained(source.folder, source.device, source.dtype,
                                 quantization_config=self._quantization_config(options, source.dtype))
        # Before the first forward: on AVX512-BF16 CPUs that repacks 4-bit weights, and what is saved then is garbage.
        save_pretrained(loaded, out)
        return loaded

    def load(self, checkpoint: Path, device: str, dtype: str) -> LoadedModel:
        _quiet()
        return load_pretrained(checkpoint, device, dtype)


class Int8(_BitsAndBytes):
    """8-bit weights with one scale per row, outlier activations in 16 bits."""

    config_class = Int8Config

    def _quantization_config(self, options: Int8Config, dtype: str) -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=float(options.bnb_8bit_threshold))

    def linear_bytes(self, options: Int8Config, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        return {"block_weights": rows * columns, "scales": rows * 4 + 1}  # SCB in fp32, one byte of weight format


class FourBit(_BitsAndBytes):
    """NF4 or FP4."""

    config_class = FourBitConfig

    def _quantization_config(self, options: FourBitConfig, dtype: str) -> Any:
        from transformers import BitsAndBytesConfig

        compute = dtype if options.bnb_4bit_compute_dtype == "auto" else options.bnb_4bit_compute_dtype
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=options.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant, bnb_4bit_compute_dtype=torch_dtype(compute))

    def linear_bytes(self, options: FourBitConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        blocks = math.ceil(rows * columns / QUANT_BLOCK)
        scales = 16 * 4 + QUANT_STATE_BYTES  # the code book in fp32, and the state
        if options.bnb_4bit_use_double_quant:
            scales += blocks + math.ceil(blocks / NESTED_BLOCK) * 4 + 256 * 4
        else:
            scales += blocks * 4
        return {"block_weights": math.ceil(rows * columns / 2), "scales": scales}
