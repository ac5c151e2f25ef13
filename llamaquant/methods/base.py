"""What every quantization method offers, and the little that they share."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llamaquant.errors import BackendError, ConfigError, DataError
from llamaquant.model import LoadedModel, ModelShape, kernel_of, torch_dtype

BYTES_OF_DTYPE = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class MethodConfig:
    """Options of one method. Fields carry the method's prefix (`gptq_bits`), as one config may be read beside others."""

    prefix: ClassVar[str] = ""

    @property
    def bits(self) -> int:
        """Nominal bits of a block weight (16 for the unquantized model)."""
        raise NotImplementedError

    def label(self) -> str:
        """Short name for people, e.g. `gptq-4bit-g128`."""
        raise NotImplementedError

    @property
    def head_bits(self) -> int:
        """Bits of embedding and head; methods that can change it have the option `<prefix>_head_bits`."""
        return int(getattr(self, f"{self.prefix}_head_bits", 16))

    @property
    def head_label(self) -> str:
        """Part of the label, empty for an unquantized head."""
        return "" if self.head_bits == 16 else f"-head{self.head_bits}"

    @classmethod
    def option_name(cls, name: str) -> str:
        """Full field name of an option given with or without the method's prefix; ConfigError where there is none."""
        fields = [field.name for field in dataclasses.fields(cls)]
        for candidate in (name, f"{cls.prefix}_{name}"):
            if candidate in fields:
                return candidate
        import difflib

        near = difflib.get_close_matches(name, fields, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "remove it"
        raise ConfigError(f"options of this method are {', '.join(fields) or 'none'}, got {name!r}: {hint}")


@dataclass(frozen=True)
class Source:
    """The unquantized checkpoint that a method starts from, and where to work.

    Attributes:
        folder: a Hugging Face checkpoint with safetensors weights.
        device: `cpu` or `cuda:N`.
        dtype: `fp16`, `bf16` or `fp32`: of everything that stays unquantized.
        seed: for whatever the method draws at random.
        sequence_length: tokens of a calibration text that are used at most.
    """

    folder: Path
    device: str
    dtype: str
    seed: int
    sequence_length: int = 512


class Method(ABC):
    """One way to make a checkpoint smaller."""

    config_class: ClassVar[type[MethodConfig]]
    needs_calibration: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version can change the weights; part of the checkpoint's fingerprint."""

    @abstractmethod
    def prepare(self, source: Source, options: Any, texts: Sequence[str], out: Path) -> LoadedModel:
        """Quantize `source` and save weights, config and tokenizer into the existing folder `out`.

        Returns the in-memory quantized model, so that the reload can be compared with it.
        """

    def load(self, checkpoint: Path, device: str, dtype: str) -> LoadedModel:
        """Load what `prepare` saved, as a stranger would. Default: plain transformers."""
        return load_pretrained(checkpoint, device, dtype)

    @abstractmethod
    def linear_bytes(self, options: Any, rows: int, columns: int, dtype_bytes: int) -> dict[str, int]:
        """Predicted stored bytes by role of one block linear with `rows` outputs and `columns` inputs."""

    def check_shape(self, options: Any, shape: ModelShape) -> None:  # noqa: B027 - most methods fit every shape
        """ConfigError where the options do not fit the model's widths. Default: everything fits."""

    def predicted_bytes(self, options: Any, shape: ModelShape, dtype: str) -> dict[str, int]:
        """Predicted tensor bytes of the whole checkpoint by role, before anything is quantized."""
        size = BYTES_OF_DTYPE[dtype]
        embedding = embedding_bytes(shape, options.head_bits, size)
        total = {"embedding": embedding, "norms": shape.norm_parameters * size}
        if not shape.tied:
            total["head"] = embedding
        for rows, columns in shape.block_linears.values():
            for role, count in self.linear_bytes(options, rows, columns, size).items():
                total[role] = total.get(role, 0) + count * shape.layers
        return total


def head_group_size(hidden: int) -> int:
    """Columns that share a scale in a packed head: 64, or the largest power of two below it that divides the width."""
    return math.gcd(hidden, 64)


def embedding_bytes(shape: ModelShape, head_bits: int, dtype_bytes: int) -> int:
    """Stored bytes of one embedding matrix: plain at 16 bits, else packed with an fp16 scale per group."""
    if head_bits == 16:
        return shape.embedding_parameters * dtype_bytes
    scales = shape.embedding_parameters // head_group_size(shape.hidden) * 2
    return shape.embedding_parameters * head_bits // 8 + scales


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's own tokenizer, with a padding token (the end-of-text token where it has none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"a model folder must hold a tokenizer, got {folder} ({error}): "
                        "copy tokenizer.json beside the weights") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_pretrained(folder: Path, device: str, dtype: str, **kwargs: Any) -> LoadedModel:
    """Load a checkpoint folder with plain transformers: safetensors only, no remote code.

    Raises:
        BackendError: transformers or a library that it calls cannot load it here.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch_dtype(dtype), device_map={"": device}, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise BackendError(f"a checkpoint must load in transformers, got {folder} ({type(error).__name__}: {error}): "
                           "see `mlflow run . -e doctor`") from error
    model.eval()
    return LoadedModel(model=model, tokenizer=load_tokenizer(folder), kernel=kernel_of(model))


def save_pretrained(loaded: LoadedModel, out: Path) -> None:
    """Save weights (safetensors), config and tokenizer into `out`."""
    loaded.model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
