"""No quantization: the 16- or 32-bit baseline, saved in the dtype of the run so that its artifact is what was scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaquant.methods.base import Method, MethodConfig, Source, load_pretrained, save_pretrained
from llamaquant.model import LoadedModel


@dataclass(frozen=True)
class UnquantizedConfig(MethodConfig):
    """The baseline has no options; its precision is the experiment's `dtype`."""

    @property
    def bits(self) -> int:
        return 16

    def label(self) -> str:
        return "unquantized"


class Unquantized(Method):
    """The model as it is."""

    config_class = UnquantizedConfig

    def prepare(self, source: Source, options: Any, texts: Sequence[str], out: Path) -> LoadedModel:
        loaded = load_pretrained(source.folder, source.device, source.dtype)
        save_pretrained(loaded, out)
        return loaded

    def linear_bytes(self, options: Any, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        return {"block_weights": rows * columns * dtype_bytes}
