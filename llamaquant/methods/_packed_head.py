"""Embedding and head in 8 or 4 bits, on top of any method. The largest lever of small models with large vocabularies.

No vendor format that plain transformers loads holds a tied embedding once and quantized. So this is a small format of
our own: the weights lie in `model.packedhead.safetensors`, which `from_pretrained` refuses to take for a whole model
(it asks for `model.safetensors`), and which llamaquant loads. A tie is kept: one matrix serves both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaquant.errors import ConfigError, DataError
from llamaquant.methods.base import head_group_size
from llamaquant.model import LoadedModel, ModelShape, torch_dtype

if TYPE_CHECKING:
    import torch

VARIANT = "packedhead"
FILE = f"model.{VARIANT}.safetensors"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
LOADER = "llamaquant"
ROWS_AT_ONCE = 16_384
"""Rows that the head unpacks at a time, so that the 16-bit matrix is never whole in memory."""


def check_head_bits(name: str, bits: Any) -> None:
    """ConfigError for a width that cannot be stored."""
    if bits not in (16, 8, 4) or isinstance(bits, bool):
        raise ConfigError(f"{name} must be 16, 8 or 4, got {bits!r}: use 16")


def check_head(bits: int, shape: ModelShape) -> None:
    """ConfigError where a model's width does not fit packed heads."""
    if bits != 16 and shape.hidden % 16:
        raise ConfigError(f"a packed head must have a width that 16 divides, got {shape.hidden}: use head_bits=16")


def quantize_rows(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round [V, H] to nearest in groups of columns: packed [V, H * bits / 8] and fp16 scales [V, H / group].

    The value of largest magnitude in a group maps to the grid's end, -2^(bits-1), whatever its sign (as in ggml's
    Q4_0), so that the one extra negative level is not lost.
    """
    import torch

    vocabulary, hidden = weight.shape
    groups = weight.float().reshape(vocabulary, -1, head_group_size(hidden))  # [V, G, H/G]
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # [V, G, 1]
    half = 2 ** (bits - 1)
    scales = (extreme / -half).to(torch.float16)
    divisor = torch.where(scales == 0, 1.0, scales.float())
    codes = (groups / divisor).round().clamp(-half, half - 1).reshape(vocabulary, hidden)
    if bits == 8:
        return codes.to(torch.int8), scales.squeeze(-1)
    nibbles = (codes + half).to(torch.uint8)  # [V, H]
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scales.squeeze(-1)


def dequantize_rows(packed: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Invert `quantize_rows` for any leading shape: [..., H * bits / 8] and [..., G] -> [..., H]."""
    import torch

    if packed.dtype == torch.uint8:
        packed = torch.stack(((packed & 15).to(torch.int8) - 8, (packed >> 4).to(torch.int8) - 8), dim=-1).flatten(-2)
    grouped = packed.reshape(*scales.shape, -1).to(dtype) * scales.to(dtype).unsqueeze(-1)  # [..., G, H/G]
    return grouped.flatten(-2)


def _modules() -> tuple[Any, Any]:
    """The two layer classes; made here because importing this file must not import torch."""
    import torch

    class PackedEmbedding(torch.nn.Module):
        """Looks up rows of a packed matrix: [B, T] -> [B, T, H]."""

        def __init__(self, packed: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> None:
            super().__init__()
            self.register_buffer("qweight", packed)
            self.register_buffer("scales", scales)
            self.compute_dtype = dtype

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return dequantize_rows(self.qweight[ids], self.scales[ids], self.compute_dtype)

    class PackedHead(PackedEmbedding):
        """Logits from hidden states: [B, T, H] -> [B, T, V]."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            parts = [torch.nn.functional.linear(states, dequantize_rows(packed, scales, states.dtype))
                     for packed, scales in zip(self.qweight.split(ROWS_AT_ONCE), self.scales.split(ROWS_AT_ONCE), strict=True)]
            return torch.cat(parts, dim=-1)

    return PackedEmbedding, PackedHead


def _install(model: Any, tensors: dict[str, Any]) -> None:
    """Put packed layers in the place of embedding and head; without tensors of its own the head shares the embedding's."""
    embedding, head = _modules()
    dtype = model.dtype
    device = model.device
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    own = HEAD if f"{HEAD}.qweight" in moved else EMBEDDING
    model.model.embed_tokens = embedding(moved[f"{EMBEDDING}.qweight"], moved[f"{EMBEDDING}.scales"], dtype)
    model.lm_head = head(moved[f"{own}.qweight"], moved[f"{own}.scales"], dtype)
    model.all_tied_weights_keys = {}  # nothing is left that transformers could tie again
    model._tied_weights_keys = {}


def pack_head(loaded: LoadedModel, out: Path, bits: int) -> LoadedModel:
    """Quantize embedding and head of a model that was just saved into `out`, there and in memory. 16 bits changes nothing."""
    if bits == 16:
        return loaded
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    files = sorted(out.glob("*.safetensors"))
    for path in files:
        tensors |= load_file(path)
    packed: dict[str, Any] = {}
    for name in (EMBEDDING, HEAD):
        weight = tensors.pop(f"{name}.weight", None)
        if weight is not None:
            packed[f"{name}.qweight"], packed[f"{name}.scales"] = (t.contiguous() for t in quantize_rows(weight, bits))
    save_file(tensors | packed, out / FILE, metadata={"format": "pt"})
    for path in (*files, out / "model.safetensors.index.json"):
        path.unlink(missing_ok=True)
    _install(loaded.model, packed)
    return LoadedModel(model=loaded.model, tokenizer=loaded.tokenizer, kernel=loaded.kernel, loader=LOADER)


def load_with_packed_head(checkpoint: Path, device: str, dtype: str, load: Callable[..., LoadedModel]) -> LoadedModel:
    """`load()` for a plain checkpoint; for one with a packed head, `load(variant=...)` and the packed layers on top."""
    path = checkpoint / FILE
    if not path.is_file():
        return load()
    from safetensors import safe_open

    loaded = load(variant=VARIANT)
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith((f"{EMBEDDING}.", f"{HEAD}."))]  # noqa: SIM118 - no mapping
        tensors = {name: file.get_tensor(name) for name in names}
    if f"{EMBEDDING}.qweight" not in tensors:
        raise DataError(f"a packed head must hold {EMBEDDING}.qweight, got {path} without: prepare it again")
    assert torch_dtype(dtype) is not None
    _install(loaded.model, tensors)
    return LoadedModel(model=loaded.model, tokenizer=loaded.tokenizer, kernel=loaded.kernel, loader=LOADER)
