"""The value that a method hands to every evaluator, and the shape of a Llama-like model read from its config file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaquant.errors import BackendError, DataError

if TYPE_CHECKING:
    import torch

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        model: a transformers causal language model in eval mode.
        tokenizer: its tokenizer.
        kernel: class name of the linear layer that really runs in the blocks (what "4-bit" means on this machine).
        loader: the library that a stranger needs to load the checkpoint.
    """

    model: Any
    tokenizer: Any
    kernel: str
    loader: str = "transformers"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-like model, as its config.json states them."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool

    @classmethod
    def from_folder(cls, folder: Path) -> ModelShape:
        """Read `config.json`; DataError where it is missing or is no Llama-like decoder."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise DataError(f"a model folder must hold config.json, got {folder}: point to a Hugging Face checkpoint") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"config.json must be JSON, got {path} ({error}): save the checkpoint again") from None
        try:
            heads = int(raw["num_attention_heads"])
            return cls(
                layers=int(raw["num_hidden_layers"]), hidden=int(raw["hidden_size"]), ffn=int(raw["intermediate_size"]),
                heads=heads, kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or int(raw["hidden_size"]) // heads),
                vocabulary=int(raw["vocab_size"]), context=int(raw.get("max_position_embeddings", 2048)),
                tied=bool(raw.get("tie_word_embeddings", False)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"config.json must describe a Llama-like decoder, got {path} without a usable {error}: "
                            "use a LlamaForCausalLM checkpoint") from None

    @property
    def block_linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one block: name -> (out_features, in_features)."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (attention, self.hidden), "k_proj": (kv, self.hidden), "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, attention), "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden), "down_proj": (self.hidden, self.ffn),
        }

    @property
    def block_parameters(self) -> int:
        return self.layers * sum(rows * columns for rows, columns in self.block_linears.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def norm_parameters(self) -> int:
        return (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, tied weights counted once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.block_parameters + embeddings + self.norm_parameters


def resolve_device(device: str) -> str:
    """`auto` -> `cuda:0` where there is one, else `cpu`; BackendError for a device that this machine lacks."""
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        count = torch.cuda.device_count()
        if index >= count:
            raise BackendError(f"device must exist on this machine, got {device!r} with {count} CUDA devices: "
                               "use device=cpu or see `mlflow run . -e doctor`")
        return f"cuda:{index}"
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` -> bf16 where the device has it, fp16 on GPUs below compute capability 8.0, which emulate bf16 slowly."""
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        import torch

        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16"


def torch_dtype(name: str) -> torch.dtype:
    """`fp16` | `bf16` | `fp32` -> torch's dtype."""
    import torch

    value = getattr(torch, DTYPES[name])
    assert isinstance(value, torch.dtype)
    return value


def kernel_of(model: Any) -> str:
    """Class of the linear layers in the blocks, most frequent first; several are joined with `+`."""
    from collections import Counter

    names = Counter(
        type(module).__name__ for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    return "+".join(name for name, _ in names.most_common()) or "unknown"
