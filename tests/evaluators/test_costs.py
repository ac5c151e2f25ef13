"""Footprint, memory and latency against hand counts, a fake clock and the operating system."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llamaquant import demo
from llamaquant.errors import DataError, TrialError
from llamaquant.evaluators.footprint import measure_footprint, role_of, tensor_headers
from llamaquant.evaluators.harness import evaluate_last_turns
from llamaquant.evaluators.latency import measure_latency, timed
from llamaquant.evaluators.memory import PeakMeter, measure_memory, weight_bytes_by_dtype
from llamaquant.methods.base import load_pretrained
from llamaquant.model import LoadedModel, resolve_dtype
from llamaquant.results import Samples


def silent(what: str, share: float) -> None:
    pass


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_pretrained(demo.MODEL_PATH, "cpu", "fp32")


@pytest.mark.parametrize("name,role", [
    ("model.embed_tokens.weight", "embedding"), ("lm_head.weight", "head"), ("model.norm.weight", "norms"),
    ("model.layers.0.input_layernorm.weight", "norms"), ("model.layers.3.mlp.up_proj.weight", "block_weights"),
    ("model.layers.3.mlp.up_proj.qweight", "block_weights"), ("model.layers.3.mlp.up_proj.qzeros", "zeros"),
    ("model.layers.3.mlp.up_proj.scales", "scales"), ("model.layers.3.mlp.up_proj.SCB", "scales"),
    ("model.layers.3.mlp.up_proj.g_idx", "g_idx"), ("model.layers.3.mlp.up_proj.weight.absmax", "scales"),
    ("model.layers.3.mlp.up_proj.weight.quant_map", "scales"), ("model.layers.3.mlp.up_proj.weight.nested_absmax", "scales"),
    ("model.layers.3.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "scales"), ("something.else", "other"),
])
def test_roles(name: str, role: str) -> None:
    assert role_of(name) == role


def test_footprint_counts_stored_bytes(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(10, 4, dtype=torch.bfloat16),
               "model.layers.0.mlp.up_proj.qweight": torch.zeros(2, 8, dtype=torch.int32),
               "model.layers.0.mlp.up_proj.scales": torch.zeros(1, 8, dtype=torch.float16)}, tmp_path / "a.safetensors")
    save_file({"model.norm.weight": torch.zeros(4)}, tmp_path / "b.safetensors")
    found = measure_footprint(tmp_path, parameters=168, block_parameters=128)
    assert found.bytes_by_role == {"embedding": 80, "block_weights": 64, "scales": 16, "norms": 16}
    assert found.bits_per_param == 8 * 176 / 168 and found.block_bits_per_param == 5.0
    assert found.file_bytes > found.tensor_bytes == 176


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_cut_weights_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    if damage == "empty":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.write_bytes(b"\xff" * 64)
    with pytest.raises(DataError):
        list(tensor_headers(tmp_path))


def test_weights_in_memory_equal_the_file(loaded: LoadedModel) -> None:
    file_bytes = sum(size for _, _, size in tensor_headers(demo.MODEL_PATH))
    buffers = sum(b.numel() * b.element_size() for b in loaded.model.buffers())
    assert weight_bytes_by_dtype(loaded.model) == {"float32": 2 * file_bytes + buffers}, "fp32 is twice the bf16 file, tied once"


def test_the_resident_peak_is_reset_per_phase() -> None:
    meter = PeakMeter("cpu")
    block = np.ones(200 * 2**20, dtype=np.uint8)
    meter.reset()
    high = meter.read_mib()["rss"]
    del block
    meter.reset()
    low = meter.read_mib()["rss"]
    assert high - low > 150 or meter.notes


def test_timing_excludes_warm_up_and_counts_milliseconds() -> None:
    now = [0.0]
    calls: list[str] = []

    def operation() -> None:
        calls.append("run")
        now[0] += 100.0 if len([c for c in calls if c == "run"]) <= 2 else 0.004

    def synchronise() -> None:
        calls.append("sync")
        now[0] += 0.001

    samples = timed(operation, synchronise, repeats=3, warmup=2, clock=lambda: now[0])
    assert samples.milliseconds == pytest.approx((5.0, 5.0, 5.0))
    assert calls == ["run", "run"] + ["sync", "run", "sync"] * 3


def test_statistics_of_samples() -> None:
    samples = Samples(tuple(float(i) for i in range(1, 102)))
    assert (samples.median_ms, samples.p90_ms, samples.spread_ms) == (51.0, 91.0, 50.0)


def test_latency_skips_what_the_context_cannot_hold(loaded: LoadedModel) -> None:
    found = measure_latency(loaded, device="cpu", vocabulary=500, context=300, seed=0, progress=silent, prefill_repeats=2, decode_tokens=3)
    assert set(found.prefill) == {128, 256} and set(found.decode) == {1, 4, 8}
    assert [note for note in found.notes if "512" in note] and len(found.notes) == 2
    assert all(len(s.milliseconds) == 3 and min(s.milliseconds) > 0 for s in found.decode.values())
    assert json.loads(json.dumps(found.raw()))["unit"] == "ms"


def test_memory_has_all_phases(loaded: LoadedModel) -> None:
    found = measure_memory(loaded, PeakMeter("cpu"), {"rss": 1.0}, vocabulary=500, context=200, seed=0, decode_tokens=2)
    assert set(found.peak_mib) == {"load", "prefill", "decode"} and found.prefill_tokens == 198
    assert found.to_metrics()["cost/prefill_peak_rss_mib"] > 50


def test_evaluation_out_of_memory_halves_the_batch(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llamaquant.evaluators.harness as harness

    real, batches = harness._simple_evaluate, []

    def tight(model: Any, task: Path, batch_size: int, *args: Any) -> Any:
        batches.append(batch_size)
        if batch_size > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(model, task, batch_size, *args)

    monkeypatch.setattr(harness, "_simple_evaluate", tight)
    stories = demo.demo_stories("evaluation", 4)
    quality = evaluate_last_turns(loaded, stories, task_folder=tmp_path, batch_size=8, max_length=2048, seed=0, progress=silent)
    assert batches == [8, 4, 2] and quality.batch_size == 2 and len(quality.notes) == 2 and len(quality.predictions) == 4

    def never(*args: Any) -> Any:
        raise MemoryError("no")

    monkeypatch.setattr(harness, "_simple_evaluate", never)
    with pytest.raises(TrialError, match="batch 1"):
        evaluate_last_turns(loaded, stories, task_folder=tmp_path, batch_size=2, max_length=2048, seed=0, progress=silent)
    with pytest.raises(DataError, match="got none"):
        evaluate_last_turns(loaded, [], task_folder=tmp_path, batch_size=2, max_length=2048, seed=0, progress=silent)


def test_scores_are_the_official_rules_own(loaded: LoadedModel, tmp_path: Path) -> None:
    """lm-eval's score of each answer against ours of the same rule, written from its specification."""
    from llamaquant.coqa.prompt import last_turn_prompt
    from llamaquant.coqa.score import f1_em_lm_eval

    stories = demo.demo_stories("evaluation", 12)
    quality = evaluate_last_turns(loaded, stories, task_folder=tmp_path, batch_size=4, max_length=2048, seed=0, progress=silent)
    by_id = {story["id"]: story for story in stories}
    import hashlib

    for p in quality.predictions:
        assert (p.f1, p.em) == pytest.approx(f1_em_lm_eval(p.prediction, p.golds))
        assert p.prompt_sha256 == hashlib.sha256(last_turn_prompt(by_id[p.story_id]).encode()).hexdigest()
    assert quality.f1_last_turn == pytest.approx(np.mean([p.f1 for p in quality.predictions]))


def test_dtype_auto() -> None:
    assert resolve_dtype("auto", "cpu") == "bf16" and resolve_dtype("fp32", "cpu") == "fp32"
