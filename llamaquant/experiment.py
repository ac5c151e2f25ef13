"""One experiment in two steps, each meant for a process of its own: make the checkpoint, then measure what was saved."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamaquant.calibration import calibration_texts
from llamaquant.checkpoint import Manifest, build_atomically, verify, write_manifest
from llamaquant.config import ExperimentConfig, digest
from llamaquant.environment import version_of, versions
from llamaquant.errors import TrialError
from llamaquant.evaluators.eager import random_ids
from llamaquant.evaluators.footprint import count_parameters, measure_footprint
from llamaquant.evaluators.harness import BATCH_SIZE, context_length, evaluate_last_turns
from llamaquant.evaluators.latency import measure_latency
from llamaquant.evaluators.memory import PeakMeter, measure_memory
from llamaquant.evaluators.quality import try_all_turns
from llamaquant.isolation import Progress
from llamaquant.methods import get_method
from llamaquant.methods.base import Source
from llamaquant.model import DTYPES, LoadedModel, resolve_device, resolve_dtype, torch_dtype
from llamaquant.results import AllTurns, ExperimentResult, Quality
from llamaquant.sources import ModelSource, resolve_model, resolve_stories

PROBE_TOKENS = 32
RELOAD_LIMIT = 0.25
"""Largest allowed difference between reloaded and in-memory logits, as a share of the largest in-memory logit. Kernels round
differently by a few per cent; a checkpoint that was saved wrong is off by the whole range."""


def prepare_checkpoint(config: ExperimentConfig, output: Path, progress: Progress) -> Path:
    """Calibrate, quantize, save; returns the folder. Made once per fingerprint, whole or not at all."""
    source = resolve_model(config.model, config.revision, config.weights)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    method = get_method(config.quantization.method)
    method.check_shape(config.quantization.options, source.shape)
    fingerprint = checkpoint_fingerprint(config, source, device, dtype)
    final = output / "checkpoints" / f"{config.quantization.options.label()}-{fingerprint}"
    if final.is_dir():
        verify(final)
        progress("prepare", 1.0)
        return final
    if source.dummy:
        source = _dummy(source, output, config.seed, device)
    texts = _calibration(config) if method.needs_calibration else []
    build_atomically(final, lambda folder: _build(config, source, device, dtype, texts, folder, final, fingerprint))
    progress("prepare", 1.0)
    return final


def checkpoint_fingerprint(config: ExperimentConfig, source: ModelSource, device: str, dtype: str) -> str:
    """16 hex digits over everything that can change the saved weights."""
    method = get_method(config.quantization.method)
    facts: dict[str, Any] = {
        "model": source.identity, "dummy_seed": config.seed if source.dummy else None, "device": device.partition(":")[0],
        "dtype": dtype, "method": str(config.quantization.method), "options": asdict(config.quantization.options),
        "versions": {name: version_of(name) for name in ("torch", "transformers", *method.packages)},
    }
    if method.needs_calibration:
        facts |= {"calibration": asdict(config.calibration), "dataset": config.dataset, "seed": config.seed,
                  "dataset_revision": config.dataset_revision}
    return digest(facts)


def _calibration(config: ExperimentConfig) -> list[str]:
    evaluated = resolve_stories(config.dataset, config.dataset_revision, config.limit, config.seed)
    return calibration_texts(config.calibration, config.dataset, evaluated)


def _build(config: ExperimentConfig, source: ModelSource, device: str, dtype: str, texts: list[str], folder: Path,
           final: Path, fingerprint: str) -> None:
    from safetensors.torch import save_file

    method = get_method(config.quantization.method)
    started = time.perf_counter()
    origin = Source(source.folder, device, dtype, config.seed, config.calibration.sequence_length)
    loaded = method.prepare(origin, config.quantization.options, texts, folder)
    seconds = time.perf_counter() - started
    probe = _probe_logits(loaded, source.shape.vocabulary)
    final.parent.mkdir(parents=True, exist_ok=True)
    save_file({"logits": probe.cpu().float()}, _probe_path(final))
    parameters, block_parameters = count_parameters(source.folder)
    manifest = Manifest(
        fingerprint=fingerprint, config=config.to_params(), loader=loaded.loader, kernel=loaded.kernel,
        device=device.partition(":")[0], dtype=dtype, parameters=parameters, block_parameters=block_parameters,
        prepare_seconds=seconds, versions=versions(), sha256={})
    (folder / "README.md").write_text(readme(config, loaded.loader, dtype, device), "utf-8")
    write_manifest(folder, manifest)


def _probe_path(checkpoint: Path) -> Path:
    """Logits of the in-memory model, kept beside the checkpoint and not in it."""
    return checkpoint.with_name(f"{checkpoint.name}.probe.safetensors")


def _probe_logits(loaded: LoadedModel, vocabulary: int) -> Any:
    """Logits [1, 32, V] on fixed random tokens; TrialError where they are not finite."""
    import torch

    ids = random_ids(1, PROBE_TOKENS, vocabulary, 0, loaded.model.device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids).logits
    if not torch.isfinite(logits).all():
        raise TrialError("a model's logits must be finite, got NaN or infinity on the probe tokens: try dtype=bf16 or fp32")
    return logits


def _dummy(source: ModelSource, output: Path, seed: int, device: str) -> ModelSource:
    """A checkpoint of the same shape with seeded random weights in bf16, for cost and speed; its tokenizer is the demo's."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llamaquant import demo

    final = output / "dummy" / f"{source.identity}-{seed}"

    def build(folder: Path) -> None:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype("bf16"), trust_remote_code=False)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (demo.MODEL_PATH / name).is_file():
                shutil.copy(demo.MODEL_PATH / name, folder)

    if not final.is_dir():
        build_atomically(final, build)
    return ModelSource(folder=final, shape=source.shape, identity=source.identity, dummy=True)


def measure(config: ExperimentConfig, checkpoint: Path, output: Path, baseline: str, progress: Progress) -> ExperimentResult:
    """Load the saved checkpoint as a stranger would, then footprint, memory, latency, quality.

    `baseline` is the fingerprint of the experiment that answers are compared with; empty for none.
    """
    manifest = verify(checkpoint)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    source = resolve_model(config.model, config.revision, config.weights)
    meter = PeakMeter(device)
    meter.reset()
    started = time.perf_counter()
    loaded = get_method(config.quantization.method).load(checkpoint, device, dtype)
    load_seconds = time.perf_counter() - started
    load_peak = meter.read_mib()
    progress("load", 1.0)
    common = {"vocabulary": source.shape.vocabulary, "context": source.shape.context, "seed": config.seed}
    memory = measure_memory(loaded, meter, load_peak, **common)
    latency = measure_latency(loaded, device=device, progress=progress, **common)
    error = _reload_error(loaded, checkpoint, source.shape.vocabulary)
    quality, all_turns, note = (None, None, "") if source.dummy else _quality(config, loaded, output, baseline, progress)
    return ExperimentResult(
        name=config.name, memory=memory, latency=latency, quality=quality, all_turns=all_turns, kernel=loaded.kernel, loader=loaded.loader,
        footprint=measure_footprint(checkpoint, manifest.parameters, manifest.block_parameters),
        reload_max_abs_logit_error=error, checkpoint=str(checkpoint), extra_notes=(note,) if note else (),
        seconds={"prepare": manifest.prepare_seconds, "load": load_seconds})


def _reload_error(loaded: LoadedModel, checkpoint: Path, vocabulary: int) -> float | None:
    """Largest difference between reloaded and in-memory logits on the probe; None where that probe is gone.

    TrialError where they are of two different models: what would be scored is not what was quantized.
    """
    from safetensors.torch import load_file

    logits = _probe_logits(loaded, vocabulary)
    path = _probe_path(checkpoint)
    if not path.is_file():
        return None
    wanted = load_file(path)["logits"]
    error, largest = float((wanted - logits.cpu().float()).abs().max()), float(wanted.abs().max())
    if error > RELOAD_LIMIT * largest:
        raise TrialError(f"a reloaded checkpoint must give the logits of the quantized model, got a difference of {error:.3g} where "
                         f"the largest logit is {largest:.3g}: delete {checkpoint.name} and prepare it again")
    return error


def _quality(config: ExperimentConfig, loaded: LoadedModel, output: Path, baseline: str,
             progress: Progress) -> tuple[Quality, AllTurns | None, str]:
    stories = resolve_stories(config.dataset, config.dataset_revision, config.limit, config.seed)
    max_length = context_length(loaded, config.max_length)
    last = evaluate_last_turns(loaded, stories, task_folder=output / "evaluation", batch_size=config.batch_size,
                               max_length=max_length, seed=config.seed, progress=progress)
    if config.turns == "last":
        return last, None, ""
    every, note = try_all_turns(loaded, stories, max_length=max_length, cache=output / "baselines", own=config.fingerprint(),
                                baseline=baseline)
    return last, every, note


LOADING = {
    "transformers": """```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "PATH_OF_THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.{dtype})
```

Score it again with lm-eval's command line; TASK_FOLDER is the artifact `evaluation` of the parent run, or the folder of the
same name in the output folder:

```
lm_eval --model hf --model_args pretrained=PATH_OF_THIS_FOLDER,dtype={dtype} --include_path TASK_FOLDER \\
  --tasks llamaquant_coqa --batch_size {batch_size} --device {device}
```""",
    "llamaquant": """Plain transformers and other loaders cannot read it: embedding and head are packed to fewer than 16 bits, in a file of
their own.

```python
from pathlib import Path
from llamaquant.methods import get_method, parse_method

loaded = get_method(parse_method("{method}")).load(Path("PATH_OF_THIS_FOLDER"), "{device}", "{short}")
loaded.model, loaded.tokenizer
```""",
}
"""How to load a checkpoint, by the library that can."""


def readme(config: ExperimentConfig, loader: str, dtype: str, device: str) -> str:
    """The note inside every artifact: what it is, how to load it, how to score it again."""
    settings = "\n".join(f"| {key.removeprefix('config.')} | `{value}` |" for key, value in config.to_params().items() if value)
    how = LOADING[loader].format(
        dtype=DTYPES[dtype], short=dtype, device=device, method=config.quantization.method,
        batch_size=config.batch_size or BATCH_SIZE[device.partition(":")[0]])
    return f"""# {config.name}

A Llama-like checkpoint that llamaquant made with method `{config.quantization.method}`. `llamaquant.json` states the versions,
the fingerprint, and the SHA-256 of every file. It loads with {loader}:

{how}

| setting | value |
| --- | --- |
{settings}
"""
