"""True bytes of a checkpoint, from the headers of its safetensors files, by role."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamaquant.errors import DataError
from llamaquant.results import Footprint

ROLES: tuple[tuple[str, str], ...] = (
    (r"(^|\.)embed_tokens\.", "embedding"),
    (r"(^|\.)lm_head\.", "head"),
    (r"norm", "norms"),
    (r"\.g_idx$", "g_idx"),
    (r"\.qzeros$|\.zeros?$|\.zero_point$", "zeros"),
    (r"\.(scales?|SCB|absmax|nested_absmax|quant_map|nested_quant_map|weight_format)$|\.quant_state\.", "scales"),
    (r"\.(weight|qweight|weight_packed|W_q)$", "block_weights"),
)
"""First match wins; what matches nothing is `other`. The embedding's own scales count as embedding."""


def tensor_headers(folder: Path) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and stored bytes of every tensor, without reading the tensors.

    The header is a little-endian u64 length followed by that many bytes of JSON (safetensors format specification).

    Raises:
        DataError: no weights, or a file that is cut short.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"a checkpoint must hold *.safetensors files, got {folder} without: save it with save_pretrained")
    for path in files:
        with open(path, "rb") as stream:
            try:
                length = int.from_bytes(stream.read(8), "little")
                header: dict[str, Any] = json.loads(stream.read(length))
            except (ValueError, MemoryError, OverflowError):
                raise DataError(f"weights must be whole safetensors files, got {path.name} without a header: fetch it again") from None
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise DataError(f"weights must be whole files, got {path.name} with {path.stat().st_size} of {8 + length + end} bytes: "
                            "fetch it again")
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            yield name, entry["shape"], stop - start


def role_of(name: str) -> str:
    """Role of a tensor by its name."""
    return next((role for pattern, role in ROLES if re.search(pattern, name)), "other")


def count_parameters(folder: Path) -> tuple[int, int]:
    """Parameters of an unquantized checkpoint: all of them, and those of the block linears. Tied weights are stored once."""
    total = blocks = 0
    for name, shape, _ in tensor_headers(folder):
        count = 1
        for size in shape:
            count *= size
        total += count
        blocks += count if role_of(name) == "block_weights" else 0
    return total, blocks


def measure_footprint(folder: Path, parameters: int, block_parameters: int) -> Footprint:
    """Stored bytes by role of the checkpoint in `folder`, against the parameter counts of the unquantized model."""
    by_role: dict[str, int] = {}
    for name, _, size in tensor_headers(folder):
        by_role[role_of(name)] = by_role.get(role_of(name), 0) + size
    return Footprint(bytes_by_role=by_role, parameters=parameters, block_parameters=block_parameters,
                     file_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")))
