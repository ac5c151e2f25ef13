"""What an experiment measured: frozen values with units in their names, flattened to MLflow metrics.

Raw samples are kept; statistics are derived from them. No NaN and no infinity gets through: a value that was
not measured is absent (None), never a placeholder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from llamaquant.errors import TrialError

MIB = 1024.0 * 1024.0


def finite(metrics: dict[str, float | None]) -> dict[str, float]:
    """Drop what was not measured (None); a NaN or infinity is an error that names the metric."""
    kept = {name: float(value) for name, value in metrics.items() if value is not None}
    for name, value in kept.items():
        if not math.isfinite(value):
            raise TrialError(f"every metric must be finite, got {name}={value}: the model is broken or a timer failed")
    return kept


@dataclass(frozen=True)
class TurnPrediction:
    """One question: where it comes from, what was expected, what the model said, how it scored (0..1)."""

    story_id: str
    turn_id: int
    domain: str
    prompt_sha256: str
    golds: tuple[str, ...]
    prediction: str
    f1: float
    em: float


@dataclass(frozen=True)
class Quality:
    """lm-eval's `coqa`: the last turn of each story, mean F1 and EM (both 0..1) over stories."""

    f1_last_turn: float
    em_last_turn: float
    predictions: tuple[TurnPrediction, ...]
    seconds: float
    batch_size: int
    notes: tuple[str, ...] = ()

    def to_metrics(self) -> dict[str, float]:
        return finite({
            "quality/f1_last_turn": self.f1_last_turn,
            "quality/em_last_turn": self.em_last_turn,
            "quality/stories": len({p.story_id for p in self.predictions}),
            "quality/last_turn_seconds": self.seconds,
        })


@dataclass(frozen=True)
class AllTurns:
    """Every turn of every story, scored by the official rules.

    Attributes:
        predictions: one per turn; F1 and EM (0..1) leave one reference out in turn, repeated references kept.
        seconds: decoding, without loading.
        turns_alone: turns that could not share their dialogue's prefill.
        divergence: metrics against the baseline of the same command; empty where there is none.
    """

    predictions: tuple[TurnPrediction, ...]
    seconds: float
    turns_alone: int
    divergence: dict[str, float]
    notes: tuple[str, ...] = ()

    def to_metrics(self) -> dict[str, float]:
        domains: dict[str, list[float]] = {}
        for p in self.predictions:
            domains.setdefault("".join(c if c.isalnum() else "_" for c in p.domain) or "unnamed", []).append(p.f1)
        by_domain = {f"quality/f1_{name}": float(np.mean(values)) for name, values in domains.items()} if len(domains) > 1 else {}
        return finite({
            "quality/f1": float(np.mean([p.f1 for p in self.predictions])),
            "quality/em": float(np.mean([p.em for p in self.predictions])), **by_domain, **self.divergence,
            "quality/questions": len(self.predictions), "quality/turns_alone": self.turns_alone,
            "quality/all_turns_seconds": self.seconds,
        })


@dataclass(frozen=True)
class Footprint:
    """Bytes of the saved checkpoint's tensors, by role (`block_weights`, `scales`, `embedding`, ...).

    Attributes:
        bytes_by_role: stored tensor bytes per role, from the files' own headers.
        parameters: number of parameters of the unquantized model, tied weights counted once.
        block_parameters: those that belong to the linear layers of the blocks.
        file_bytes: size of the weight files on disk; headers and padding included.
    """

    bytes_by_role: dict[str, int]
    parameters: int
    block_parameters: int
    file_bytes: int

    @property
    def tensor_bytes(self) -> int:
        return sum(self.bytes_by_role.values())

    @property
    def bits_per_param(self) -> float:
        """Stored bits of the whole model (embedding, scales and norms included) per original parameter."""
        return 8.0 * self.tensor_bytes / self.parameters

    @property
    def block_bits_per_param(self) -> float:
        """Stored bits of the blocks' linear layers, quantization metadata included, per parameter of theirs."""
        outside = ("embedding", "head", "norms", "other")
        inside = sum(size for role, size in self.bytes_by_role.items() if role not in outside)
        return 8.0 * inside / self.block_parameters

    def to_metrics(self) -> dict[str, float]:
        by_role = {f"cost/bytes_{role}": float(size) for role, size in sorted(self.bytes_by_role.items())}
        return finite({
            "cost/bits_per_param": self.bits_per_param,
            "cost/block_bits_per_param": self.block_bits_per_param,
            "cost/checkpoint_mib": self.tensor_bytes / MIB,
            "cost/file_mib": self.file_bytes / MIB,
            "cost/compression_vs_16bit": 16.0 / self.bits_per_param,
            **by_role,
        })


@dataclass(frozen=True)
class Memory:
    """Weights by dtype as they lie in memory, and peaks by phase (load, prefill, decode).

    `peak_mib` holds, per phase, `alloc` and `reserved` on CUDA (torch's allocator) or `rss` on CPU (resident set).
    """

    weight_bytes_by_dtype: dict[str, int]
    peak_mib: dict[str, dict[str, float]]
    prefill_tokens: int
    decode_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def weight_mib(self) -> float:
        return sum(self.weight_bytes_by_dtype.values()) / MIB

    def to_metrics(self) -> dict[str, float]:
        peaks = {
            f"cost/{phase}_peak_{kind}_mib": value
            for phase, kinds in self.peak_mib.items() for kind, value in kinds.items()
        }
        highest = {
            f"cost/peak_{kind}_mib": max(kinds[kind] for kinds in self.peak_mib.values() if kind in kinds)
            for kind in {kind for kinds in self.peak_mib.values() for kind in kinds}
        }
        dtypes = {f"cost/weights_{name}_mib": size / MIB for name, size in self.weight_bytes_by_dtype.items()}
        return finite({"cost/weights_mib": self.weight_mib, **dtypes, **peaks, **highest})


@dataclass(frozen=True)
class Samples:
    """Raw timings in milliseconds of one repeated operation."""

    milliseconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def p90_ms(self) -> float:
        return float(np.quantile(self.milliseconds, 0.9))

    @property
    def spread_ms(self) -> float:
        """Interquartile range."""
        return float(np.quantile(self.milliseconds, 0.75) - np.quantile(self.milliseconds, 0.25))


@dataclass(frozen=True)
class Latency:
    """Eager decoding as transformers users see it.

    Attributes:
        prefill: prompt length in tokens -> samples of one forward pass at batch 1.
        decode: batch size -> samples of one decode step, after `context_tokens` of prefix.
    """

    prefill: dict[int, Samples]
    decode: dict[int, Samples]
    context_tokens: int
    mode: str = "eager"
    notes: tuple[str, ...] = ()

    def to_metrics(self) -> dict[str, float]:
        metrics: dict[str, float | None] = {}
        for tokens, samples in self.prefill.items():
            metrics[f"speed/prefill_{tokens}_ms"] = samples.median_ms
            metrics[f"speed/prefill_{tokens}_p90_ms"] = samples.p90_ms
            metrics[f"speed/prefill_{tokens}_iqr_ms"] = samples.spread_ms
        for batch, samples in self.decode.items():
            metrics[f"speed/decode_b{batch}_ms_per_step"] = samples.median_ms
            metrics[f"speed/decode_b{batch}_p90_ms"] = samples.p90_ms
            metrics[f"speed/decode_b{batch}_iqr_ms"] = samples.spread_ms
            metrics[f"speed/throughput_b{batch}_tokens_per_s"] = 1000.0 * batch / samples.median_ms
        if 1 in self.decode:
            metrics["speed/decode_ms_per_token"] = self.decode[1].median_ms
        return finite(metrics)

    def raw(self) -> dict[str, object]:
        """Everything that was sampled, for the artifact `latency_samples.json`."""
        return {
            "mode": self.mode, "unit": "ms", "context_tokens": self.context_tokens, "notes": list(self.notes),
            "prefill_tokens": {str(k): list(v.milliseconds) for k, v in self.prefill.items()},
            "decode_batch": {str(k): list(v.milliseconds) for k, v in self.decode.items()},
        }


@dataclass(frozen=True)
class ExperimentResult:
    """All that one experiment measured. `quality` is None for dummy weights, which have none."""

    name: str
    footprint: Footprint
    memory: Memory
    latency: Latency
    quality: Quality | None
    kernel: str
    loader: str
    reload_max_abs_logit_error: float | None
    all_turns: AllTurns | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    run_id: str = ""
    extra_notes: tuple[str, ...] = ()

    def to_metrics(self) -> dict[str, float]:
        seconds = {f"cost/{phase}_seconds": value for phase, value in self.seconds.items()}
        quality = self.quality.to_metrics() if self.quality else {}
        quality |= self.all_turns.to_metrics() if self.all_turns else {}
        return finite({
            **quality, **self.footprint.to_metrics(), **self.memory.to_metrics(), **self.latency.to_metrics(), **seconds,
            "artifact/reload_max_abs_logit_error": self.reload_max_abs_logit_error,
        })

    @property
    def notes(self) -> tuple[str, ...]:
        quality = (*(self.quality.notes if self.quality else ()), *(self.all_turns.notes if self.all_turns else ()))
        return (*quality, *self.extra_notes, *self.memory.notes, *self.latency.notes)
