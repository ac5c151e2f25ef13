"""The one place that knows gptqmodel: quantize and save through it, load through plain transformers with its kernels."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamaquant.errors import BackendError, ConfigError
from llamaquant.methods.base import Source, load_pretrained, load_tokenizer
from llamaquant.model import LoadedModel, ModelShape, kernel_of, torch_dtype

WORD_BITS = 32
"""Quantized weights are packed into int32 words, along the inputs (GPTQ format) or the outputs (AWQ format)."""
LOG = logging.getLogger(__name__)


def vendor() -> Any:
    """gptqmodel, imported with its worker pool at a size that small machines survive."""
    if (os.cpu_count() or 1) <= 4:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # read at import; with one worker quantizing never ends
    try:
        return importlib.import_module("gptqmodel")
    except Exception as error:
        raise BackendError(f"gptqmodel must be importable, got {type(error).__name__} ({' '.join(str(error).split())}): "
                           "pip install -r requirements.txt") from error


def config_class(name: str) -> Any:
    """A config class of gptqmodel: `GPTQConfig`, `AWQConfig` or `RTNConfig`."""
    vendor()
    return getattr(importlib.import_module("gptqmodel.quantization.config"), name)


def working_dtype(source: Source) -> str:
    """Dtype of the weights while GPTQ and RTN look at them: fp32 on CPU, where bf16 products without bf16 units are several
    times slower and widening is exact; on GPUs that of the run."""
    return "fp32" if source.device == "cpu" else source.dtype


def quantize(source: Source, settings: Any, texts: Sequence[str], out: Path, dtype: str, backend: str = "auto") -> LoadedModel:
    """Quantize the blocks of `source` as the gptqmodel config `settings` says, save into `out`, return the model in memory.

    The work is done in `dtype`; what stays unquantized is cast to the dtype of `source` before it is saved.
    """
    import torch

    gptqmodel = vendor()
    torch.manual_seed(source.seed)
    tokenizer = load_tokenizer(source.folder)
    settings.device = torch.device(source.device)
    folder, out = source.folder.resolve(), out.resolve()
    rows = [tokenizer(text)["input_ids"][:source.sequence_length] for text in texts]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # the vendor writes `logs/` where it stands
        wrapper = gptqmodel.GPTQModel.load(str(folder), settings, trust_remote_code=False, dtype=torch_dtype(dtype))
        wrapper.quantize(rows or None, batch_size=1, tokenizer=tokenizer, calibration_data_min_length=0,
                         backend=gptqmodel.BACKEND(backend))
    model = wrapper.model
    _cast_unquantized(model, torch_dtype(source.dtype), source.device)
    wrapper.save(str(out))
    (out / "quant_log.csv").unlink(missing_ok=True)  # wall times: would make equal checkpoints differ
    tokenizer.save_pretrained(out)
    _ready_to_run(model, settings, wrapper.qlinear_kernel)
    return LoadedModel(model=model, tokenizer=tokenizer, kernel=kernel_of(model))


def _cast_unquantized(model: Any, dtype: Any, device: str) -> None:
    """Cast and move embedding, head and norms; packed layers hold buffers and keep their own dtypes, but scales are fp16."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        scales = getattr(module, "scales", None)
        if isinstance(scales, torch.Tensor) and scales.is_floating_point():
            module.scales = scales.to(torch.float16)
    model.config.dtype = dtype
    model.to(device)
    model.tie_weights()


def _ready_to_run(model: Any, settings: Any, kernel: Any) -> None:
    """What the vendor's loader does to a model from disk: the packed layers run on format v2, but are saved as v1."""
    helpers = importlib.import_module("gptqmodel.utils.model")
    if settings.format == "gptq":
        helpers.hf_convert_gptq_v1_to_v2_format(model, settings.bits, kernel, "gptq", None)
    helpers.hf_gptqmodel_post_init(model, use_act_order=bool(settings.desc_act))
    _run_eagerly_on_cpu(model)
    model.eval()


def _run_eagerly_on_cpu(model: Any) -> None:
    """Undo the vendor's torch.compile of the unpacking: on CPU it needs a C++ compiler and costs half a minute a process."""
    if model.device.type == "cpu":
        for module in model.modules():
            module.__dict__.pop("dequantize_weight", None)  # the compiled one; the method of the class is the same, eager


def load(checkpoint: Path, device: str, dtype: str, portable: str, **kwargs: Any) -> LoadedModel:
    """Load with plain transformers on the kernel that the vendor picks, or on `portable` where that one fails.

    Kernels may be compiled or fetched on first use, and some fail only at their first product: so one is tried.

    Raises:
        BackendError: the portable kernel fails too.
    """
    vendor()
    try:
        loaded = load_pretrained(checkpoint, device, dtype, **kwargs)
        _one_product(loaded)
        return loaded
    except Exception as error:  # vendors raise everything, assertion errors included
        LOG.warning("the kernel of choice failed (%s: %s); falling back to %s", type(error).__name__, error, portable)
    try:
        loaded = load_pretrained(checkpoint, device, dtype, quantization_config=_on_kernel(checkpoint, portable), **kwargs)
        _one_product(loaded)
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"a checkpoint must run on kernel {portable}, got {type(error).__name__} "
                           f"({' '.join(str(error).split())[:300]}): see `mlflow run . -e doctor`") from error
    return loaded


def _on_kernel(checkpoint: Path, backend: str) -> Any:
    """The checkpoint's own quantization config with another kernel; all other values are taken from the file anyway."""
    from transformers import AutoConfig, AwqConfig, GPTQConfig

    stored = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True).quantization_config
    if stored["quant_method"] == "awq":
        return AwqConfig(bits=stored["bits"], group_size=stored["group_size"], backend=backend)
    return GPTQConfig(bits=stored["bits"], group_size=stored["group_size"], backend=backend)


def _one_product(loaded: LoadedModel) -> None:
    import torch

    _run_eagerly_on_cpu(loaded.model)
    ids = torch.ones((1, 4), dtype=torch.long, device=loaded.model.device)  # [1, T]
    with torch.inference_mode():
        loaded.model(input_ids=ids)


def groups_of(columns: int, group_size: int) -> int:
    """Scales per row; a group that does not divide the width leaves a shorter last one."""
    return 1 if group_size == -1 else -(-columns // group_size)


def check_widths(method: str, shape: ModelShape) -> None:
    """ConfigError where a block linear cannot be packed into whole words."""
    for name, (rows, columns) in shape.block_linears.items():
        if rows % WORD_BITS or columns % WORD_BITS:
            raise ConfigError(f"method {method} must have layer widths that 32 divides, got {rows} x {columns} in {name}: "
                              "use method=bnb_4bit")


def gptq_format_bytes(rows: int, columns: int, bits: int, group_size: int) -> dict[str, int]:
    """Stored bytes of a linear in GPTQ's format: packed words, fp16 scales, packed zeros, int32 group of every column."""
    groups = groups_of(columns, group_size)
    return {"block_weights": rows * columns * bits // 8, "scales": groups * rows * 2,
            "zeros": groups * rows * bits // 8, "g_idx": columns * 4}
