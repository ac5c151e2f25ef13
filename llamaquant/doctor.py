"""What works on this machine: GPU, driver, kernels, libraries, hub, token, disk. Each finding has its cure."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaquant.environment import cpu_name, nvidia_smi, versions
from llamaquant.errors import LlamaQuantError
from llamaquant.isolation import Progress, in_fresh_process

HUB = ("huggingface.co", 443)
MIN_FREE_GIB = 10.0
KERNEL_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, `warn` (works, with less) or `fail` (needed, missing), and what to do about it."""

    name: str
    status: str
    detail: str
    cure: str = ""


def examine(device: str, output: Path) -> Iterator[Finding]:
    """All checks, one after the other; a check that breaks is a finding and not an error."""
    yield _hardware()
    yield _libraries()
    for name, probe in (("torch", probe_torch), ("bitsandbytes 8-bit", probe_int8), ("bitsandbytes 4-bit", probe_nf4),
                        ("gptqmodel", probe_gptqmodel)):
        yield _in_process(name, probe, device)
    yield _compiler()
    yield _hub()
    yield _token()
    yield _disk(output)


def _hardware() -> Finding:
    gpus = nvidia_smi("name", "driver_version", "memory.total")
    cpu = f"{cpu_name()}, {os.cpu_count()} cores"
    if gpus:
        return Finding("hardware", "ok", f"{'; '.join(gpus)}; {cpu}")
    return Finding("hardware", "warn", f"no NVIDIA driver; {cpu}", "everything runs on the CPU; models beyond 1 B want a GPU")


def _libraries() -> Finding:
    found = versions()
    missing = [name for name, version in found.items() if version == "absent"]
    detail = ", ".join(f"{name} {version}" for name, version in found.items())
    if missing:
        return Finding("libraries", "warn" if missing == ["gptqmodel"] else "fail", detail, "make env")
    return Finding("libraries", "ok", detail)


def _in_process(name: str, probe: Callable[[str, Progress], str], device: str) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        try:
            detail = in_fresh_process(probe, device, log=Path(folder) / "log", timeout_s=KERNEL_TIMEOUT_S)
        except LlamaQuantError as error:
            needed = name != "gptqmodel"
            return Finding(name, "fail" if needed else "warn", str(error), "pip install -r requirements.txt" if needed
                           else "GPTQ and AWQ are off; apt install gcc python3-dev, then make env")
    return Finding(name, "ok", detail)


def probe_torch(device: str, progress: Progress) -> str:
    """A matrix product on the device."""
    import torch

    from llamaquant.model import resolve_device, resolve_dtype, torch_dtype

    where = resolve_device(device)
    dtype = resolve_dtype("auto", where)
    x = torch.randn(64, 64, device=where, dtype=torch_dtype(dtype))
    assert torch.isfinite(x @ x).all()
    capability = f", compute capability {torch.cuda.get_device_capability(where)}" if where != "cpu" else ""
    return f"{where}{capability}, dtype=auto is {dtype}, {torch.get_num_threads()} threads, CUDA of the build: {torch.version.cuda}"


def _linear_error(layer: Any, device: str) -> str:
    """Relative error of a quantized linear layer against its own weights in fp32, on random input."""
    import torch

    from llamaquant.model import kernel_of, resolve_device

    where = resolve_device(device)
    torch.manual_seed(0)
    weight = torch.randn(256, 256) / 16
    layer.load_state_dict({"weight": weight}, strict=False)
    x = torch.randn(8, 256)
    with torch.inference_mode():
        out = layer.to(where)(x.to(where, torch.float16)).float().cpu()
    error = float((out - x @ weight.T).norm() / (x @ weight.T).norm())
    assert error < 0.2, f"relative error {error:.3f}"
    holder = torch.nn.Module()
    holder.q_proj = layer
    return f"{kernel_of(holder)} on {where}, relative error {error:.4f}"


def probe_int8(device: str, progress: Progress) -> str:
    """LLM.int8() product."""
    import bitsandbytes as bnb

    return _linear_error(bnb.nn.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False, threshold=6.0), device)


def probe_nf4(device: str, progress: Progress) -> str:
    """NF4 product."""
    import bitsandbytes as bnb
    import torch

    return _linear_error(bnb.nn.Linear4bit(256, 256, bias=False, quant_type="nf4", compute_dtype=torch.float16), device)


def probe_gptqmodel(device: str, progress: Progress) -> str:
    """The import, which is where a missing extension shows."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(min(2, os.cpu_count() or 1)))
    import gptqmodel

    return f"gptqmodel {gptqmodel.__version__} imports"


def _compiler() -> Finding:
    import sysconfig

    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [] if shutil.which("cc") or shutil.which("gcc") else ["gcc"]
    missing += [] if header.exists() else ["python3-dev"]
    if missing:
        return Finding("compiler", "warn", f"missing: {', '.join(missing)}", f"apt install {' '.join(missing)} (gptqmodel builds pypcre)")
    return Finding("compiler", "ok", "a C compiler and Python.h")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return Finding("hub", "warn", "HF_HUB_OFFLINE=1", "unset it to fetch models; cached ones, local folders and the demo work")
    try:
        socket.create_connection(HUB, timeout=5).close()
    except OSError as error:
        return Finding("hub", "warn", f"{HUB[0]} cannot be reached ({type(error).__name__})", "use model=demo or local folders")
    return Finding("hub", "ok", f"{HUB[0]} answers")


def _token() -> Finding:
    from huggingface_hub import get_token

    if get_token():
        return Finding("hub token", "ok", "found (its value is never shown or logged)")
    return Finding("hub token", "warn", "none", "gated models such as meta-llama/Llama-3.2-1B need `hf auth login` or HF_TOKEN")


def _disk(output: Path) -> Finding:
    folder = output.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < MIN_FREE_GIB:
        return Finding("disk", "warn", f"{free:.1f} GiB free", "a sweep of a 1 B model needs about 20 GiB; see plan=true")
    return Finding("disk", "ok", f"{free:.1f} GiB free")
