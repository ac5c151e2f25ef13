"""Memory of a loaded model: weights by dtype, and the peak of each phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamaquant.evaluators.eager import greedy_step, prefill, random_ids
from llamaquant.model import LoadedModel
from llamaquant.results import MIB, Memory


class PeakMeter:
    """Peak memory since the last `reset`: torch's CUDA allocator on a GPU, the process's resident set on a CPU.

    On Linux the resident peak is VmHWM, reset by writing 5 to /proc/self/clear_refs (proc(5)). Elsewhere it cannot be
    reset, and `notes` says so.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.notes: tuple[str, ...] = ()

    def reset(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", "utf-8")
        except OSError:
            self.notes = ("the resident peak cannot be reset on this system: phases include earlier ones",)

    def read_mib(self) -> dict[str, float]:
        """`alloc` and `reserved` on CUDA, `rss` on CPU, in MiB."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)
            return {"alloc": torch.cuda.max_memory_allocated(self.device) / MIB,
                    "reserved": torch.cuda.max_memory_reserved(self.device) / MIB}
        return {"rss": _peak_resident_mib()}


def _peak_resident_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024.0
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024.0)  # bytes on macOS, KiB elsewhere


def weight_bytes_by_dtype(model: Any) -> dict[str, int]:
    """Bytes of parameters and buffers as they lie in memory, tied tensors once, with bitsandbytes' absmax and SCB."""
    seen: set[int] = set()
    sizes: dict[str, int] = {}

    def count(tensor: Any) -> None:
        if not hasattr(tensor, "untyped_storage") or tensor.data_ptr() in seen or not tensor.numel():
            return
        seen.add(tensor.data_ptr())
        name = str(tensor.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + tensor.numel() * tensor.element_size()

    for tensor in (*model.parameters(), *model.buffers()):
        count(tensor)
        state = getattr(tensor, "quant_state", None)  # a plain attribute, which no state dict counts
        nested = getattr(state, "state2", None)
        for holder, fields in ((state, ("absmax", "code", "offset")), (nested, ("absmax", "code")), (tensor, ("SCB",))):
            for field in fields:
                count(getattr(holder, field, None))
    return sizes


def measure_memory(loaded: LoadedModel, meter: PeakMeter, load_peak_mib: dict[str, float], *, vocabulary: int,
                   context: int, seed: int, prefill_tokens: int = 512, decode_tokens: int = 16) -> Memory:
    """Peaks of one prefill and of a few decode steps at batch 1, beside the peak of loading."""
    import torch

    prefill_tokens = min(prefill_tokens, context - decode_tokens)
    ids = random_ids(1, prefill_tokens, vocabulary, seed, loaded.model.device)  # [1, T]
    with torch.inference_mode():
        meter.reset()
        token, cache = prefill(loaded.model, ids)
        peak_prefill = meter.read_mib()
        meter.reset()
        for _ in range(decode_tokens):
            token = greedy_step(loaded.model, token, cache)
        peak_decode = meter.read_mib()
    return Memory(weight_bytes_by_dtype=weight_bytes_by_dtype(loaded.model), prefill_tokens=prefill_tokens,
                  peak_mib={"load": load_peak_mib, "prefill": peak_prefill, "decode": peak_decode},
                  decode_tokens=decode_tokens, notes=meter.notes)
