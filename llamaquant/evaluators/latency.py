"""Eager latency: what transformers users see. Warmed up, synchronised, repeated, raw samples kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llamaquant.evaluators.eager import greedy_step, prefill, random_ids
from llamaquant.isolation import Progress
from llamaquant.model import LoadedModel
from llamaquant.results import Latency, Samples

PREFILL_TOKENS = (128, 256, 512, 1024)
BATCHES = (1, 4, 8)
CONTEXT_TOKENS = 128
WARMUP = 2


def synchroniser(device: str) -> Callable[[], None]:
    """Waits until the device has done all that was asked of it; nothing to wait for on a CPU."""
    if device.startswith("cuda"):
        import torch

        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def timed(operation: Callable[[], Any], synchronise: Callable[[], None], repeats: int, warmup: int = WARMUP,
          clock: Callable[[], float] = time.perf_counter) -> Samples:
    """Milliseconds of `repeats` calls, each between two synchronisations, after `warmup` calls that are not counted."""
    for _ in range(warmup):
        operation()
    samples = []
    for _ in range(repeats):
        synchronise()
        started = clock()
        operation()
        synchronise()
        samples.append((clock() - started) * 1000.0)
    return Samples(tuple(samples))


def measure_latency(loaded: LoadedModel, *, device: str, vocabulary: int, context: int, seed: int, progress: Progress,
                    prefill_repeats: int = 7, decode_tokens: int = 32) -> Latency:
    """Prefill at 128..1024 tokens (batch 1) and decode steps at batch 1, 4 and 8 after 128 tokens.

    Lengths beyond the model's context are skipped with a note.
    """
    import torch

    synchronise = synchroniser(device)
    lengths = [tokens for tokens in PREFILL_TOKENS if tokens <= context]
    notes = tuple(f"prefill of {tokens} tokens skipped: the model's context is {context}"
                  for tokens in PREFILL_TOKENS if tokens > context)
    start = min(CONTEXT_TOKENS, context - decode_tokens - WARMUP)
    steps = len(lengths) + len(BATCHES)
    prefills: dict[int, Samples] = {}
    decodes: dict[int, Samples] = {}
    with torch.inference_mode():
        for tokens in lengths:
            ids = random_ids(1, tokens, vocabulary, seed, loaded.model.device)
            prefills[tokens] = timed(lambda ids=ids: prefill(loaded.model, ids), synchronise, prefill_repeats)  # type: ignore[misc]
            progress("latency", len(prefills) / steps)
        for batch in BATCHES:
            decodes[batch] = _decode_samples(loaded.model, random_ids(batch, start, vocabulary, seed, loaded.model.device),
                                             synchronise, decode_tokens)
            progress("latency", (len(prefills) + len(decodes)) / steps)
    return Latency(prefill=prefills, decode=decodes, context_tokens=start, notes=notes)


def _decode_samples(model: Any, ids: Any, synchronise: Callable[[], None], tokens: int) -> Samples:
    """Samples of single decode steps after the prefix ids [B, T]; each step feeds the next."""
    token, cache = prefill(model, ids)

    def step() -> None:
        nonlocal token
        token = greedy_step(model, token, cache)

    return timed(step, synchronise, repeats=tokens)
