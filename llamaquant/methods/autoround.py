"""AutoRound (Cheng et al. 2024): learns whether each weight rounds up or down by signed gradient descent, block by block.

Saved in GPTQ's format, so the same loaders take it.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llamaquant.errors import BackendError, ConfigError, DataError
from llamaquant.methods import _gptqmodel
from llamaquant.methods._packed_head import check_head, check_head_bits, load_with_packed_head, pack_head
from llamaquant.methods.base import Method, MethodConfig, Source, load_pretrained
from llamaquant.model import LoadedModel, ModelShape, torch_dtype

SHORTEST_ROW = 16
"""Tokens; calibration texts below that are of no use here."""


@dataclass(frozen=True)
class AutoRoundConfig(MethodConfig):
    """Learned rounding; slower than GPTQ, and at 2 and 3 bits often better.

    Attributes:
        autoround_bits: 2, 3, 4 or 8 bits per block weight.
        autoround_group_size: input columns that share a scale; -1 is one group per row.
        autoround_sym: symmetric grid (no zero point of its own).
        autoround_iters: gradient steps per block; 200 is the paper's.
        autoround_head_bits: 16, 8 or 4 bits of embedding and head.
    """

    prefix: ClassVar[str] = "autoround"
    autoround_bits: int = 4
    autoround_group_size: int = 128
    autoround_sym: bool = True
    autoround_iters: int = 200
    autoround_head_bits: int = 16

    def __post_init__(self) -> None:
        if self.autoround_bits not in (2, 3, 4, 8) or isinstance(self.autoround_bits, bool):
            raise ConfigError(f"autoround_bits must be 2, 3, 4 or 8, got {self.autoround_bits!r}: use 4")
        if self.autoround_group_size not in (32, 64, 128, -1):
            raise ConfigError(f"autoround_group_size must be 32, 64, 128 or -1 (whole row), got {self.autoround_group_size!r}: use 128")
        if not isinstance(self.autoround_sym, bool):
            raise ConfigError(f"autoround_sym must be true or false, got {self.autoround_sym!r}: use true or false")
        iters = self.autoround_iters
        if isinstance(iters, bool) or not isinstance(iters, int) or not 1 <= iters <= 10_000:
            raise ConfigError(f"autoround_iters must be a whole number in 1..10000, got {iters!r}: use 200, or method=rtn for none")
        check_head_bits("autoround_head_bits", self.autoround_head_bits)

    @property
    def bits(self) -> int:
        return self.autoround_bits

    def label(self) -> str:
        group = "row" if self.autoround_group_size == -1 else str(self.autoround_group_size)
        iters = "" if self.autoround_iters == 200 else f"-i{self.autoround_iters}"
        return f"autoround-{self.autoround_bits}bit-g{group}" + ("" if self.autoround_sym else "-asym") + iters + self.head_label


class AutoRound(Method):
    """Learned rounding in GPTQ's file format."""

    config_class = AutoRoundConfig
    needs_calibration = True
    packages = ("auto-round", "gptqmodel")

    def prepare(self, source: Source, options: AutoRoundConfig, texts: Sequence[str], out: Path) -> LoadedModel:
        loaded = load_pretrained(source.folder, source.device, _gptqmodel.working_dtype(source))
        rows = _rows(loaded.tokenizer, texts, source.sequence_length)
        tuner = _vendor().AutoRound(
            loaded.model, loaded.tokenizer, bits=options.autoround_bits, group_size=options.autoround_group_size,
            sym=options.autoround_sym, iters=options.autoround_iters, seqlen=rows[0].shape[1], nsamples=len(rows),
            batch_size=min(8, len(rows)), dataset=rows, seed=source.seed, device_map=source.device, enable_torch_compile=False)
        model, _ = tuner.quantize()  # weights rounded to the grid, but still floating point: an independent twin of the file
        tuner.save_quantized(str(out), format="auto_gptq", inplace=False)
        _flatten(out)
        _cast(out, source.dtype)
        loaded.tokenizer.save_pretrained(out)
        model = model.to(device=source.device, dtype=torch_dtype(source.dtype)).eval()
        twin = LoadedModel(model=model, tokenizer=loaded.tokenizer, kernel=loaded.kernel)
        return pack_head(twin, out, options.head_bits)

    def load(self, checkpoint: Path, device: str, dtype: str) -> LoadedModel:
        return load_with_packed_head(
            checkpoint, device, dtype, lambda **kwargs: _gptqmodel.load(checkpoint, device, dtype, "gptq_torch", **kwargs))

    def linear_bytes(self, options: AutoRoundConfig, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        return _gptqmodel.gptq_format_bytes(rows, columns, options.autoround_bits, options.autoround_group_size)

    def check_shape(self, options: AutoRoundConfig, shape: ModelShape) -> None:
        _gptqmodel.check_widths("autoround", shape)
        check_head(options.head_bits, shape)
        for name, (rows, columns) in shape.block_linears.items():
            if options.autoround_group_size != -1 and columns % options.autoround_group_size:
                raise ConfigError(f"autoround_group_size must divide the inputs of every block linear, got "
                                  f"{options.autoround_group_size} with {rows} x {columns} in {name}: use a smaller group, or gptq")


def _vendor() -> Any:
    try:
        return importlib.import_module("auto_round")
    except Exception as error:
        raise BackendError(f"auto-round must be importable, got {type(error).__name__} ({' '.join(str(error).split())}): "
                           "pip install -r requirements.txt") from error


def _rows(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Any]:
    """Token rows [1, T] of one common length T, as the vendor wants them: the shortest quarter of the texts is dropped."""
    import torch

    rows = [tokenizer(text)["input_ids"][:limit] for text in texts]
    length = sorted(len(row) for row in rows)[len(rows) // 4]
    if length < SHORTEST_ROW:
        raise DataError(f"calibration texts must have {SHORTEST_ROW} tokens or more, got {length} at the first quartile: "
                        "use longer texts")
    return [torch.tensor([row[:length]]) for row in rows if len(row) >= length]


def _flatten(out: Path) -> None:
    """The vendor may save into a folder of its own below `out`."""
    for folder in [path for path in out.iterdir() if path.is_dir()]:
        for path in folder.iterdir():
            shutil.move(str(path), out / path.name)
        folder.rmdir()


def _cast(out: Path, dtype: str) -> None:
    """Store embedding, head and norms in the dtype of the run, a tied head not at all; scales stay fp16."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((out / "config.json").read_text("utf-8"))
    for path in out.glob("*.safetensors"):
        tensors = load_file(path)
        if config.get("tie_word_embeddings"):
            tensors.pop("lm_head.weight", None)  # the vendor unties it; its values are the embedding's
        save_file({name: t.to(torch_dtype(dtype)) if t.dtype in (torch.float32, torch.bfloat16) else t for name, t in tensors.items()},
                  path, metadata={"format": "pt"})
    config["dtype"] = str(torch_dtype(dtype)).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
