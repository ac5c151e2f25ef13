"""What quantizing costs and what comes out, for every method in one run; each step in a fresh process.

python -m benchmarks.quantize_cost [--stories 200] [--samples 128] [--methods gptq,rtn] [--output FOLDER]   # the demo: F1
python -m benchmarks.quantize_cost --shape FOLDER                                          # dummy weights of a config.json

The first form scores the demo on the last turn of each story. The second one draws random bf16 weights in the shape of
FOLDER/config.json and measures seconds and memory of quantizing, and stored bytes. A config that fails is a row with its
reason. The first row's peak includes drawing the dummy weights. The table comes last.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from llamaquant.config import CalibrationConfig, ExperimentConfig
from llamaquant.errors import LlamaQuantError
from llamaquant.isolation import Progress, in_fresh_process
from llamaquant.presets import Spec, from_spec

BASELINE: Spec = {"method": "none"}
BNB: tuple[Spec, ...] = ({"method": "bnb_8bit"}, {"method": "bnb_4bit"}, {"method": "bnb_4bit", "bnb_4bit_use_double_quant": True})
DEMO: tuple[Spec, ...] = (
    BASELINE, *BNB,
    *({"method": method, f"{method}_bits": bits, f"{method}_group_size": 64}
      for method in ("gptq", "rtn", "autoround") for bits in (8, 4, 3, 2)),
    *({"method": method, f"{method}_bits": 2, f"{method}_group_size": 64, f"{method}_sym": False}
      for method in ("gptq", "rtn", "autoround")),
    {"method": "awq", "awq_group_size": 64},
    {"method": "awq", "awq_group_size": 64, "awq_zero_point": False},
    {"method": "gptq", "gptq_bits": 4, "gptq_group_size": 64, "gptq_head_bits": 8},
    {"method": "gptq", "gptq_bits": 4, "gptq_group_size": 64, "gptq_head_bits": 4},
)
SHAPE: tuple[Spec, ...] = (
    BASELINE, *BNB, *({"method": "gptq", "gptq_bits": bits, "gptq_group_size": 128} for bits in (8, 4, 3, 2)),
    {"method": "awq", "awq_group_size": 128},
    {"method": "gptq", "gptq_bits": 4, "gptq_group_size": 128, "gptq_head_bits": 8},
)


def prepare(config: ExperimentConfig, output: Path, progress: Progress) -> dict[str, Any]:
    """Quantize and save in this process; seconds of the method alone, and the peak of this process."""
    from llamaquant.checkpoint import read_manifest
    from llamaquant.evaluators.footprint import measure_footprint
    from llamaquant.evaluators.memory import PeakMeter
    from llamaquant.experiment import prepare_checkpoint
    from llamaquant.model import resolve_device

    meter = PeakMeter(resolve_device(config.device))
    folder = prepare_checkpoint(config, output, progress)
    manifest = read_manifest(folder)
    footprint = measure_footprint(folder, manifest.parameters, manifest.block_parameters)
    return {"folder": folder, "seconds": manifest.prepare_seconds, "peak_mib": max(meter.read_mib().values()),
            "bits": footprint.bits_per_param, "block_bits": footprint.block_bits_per_param,
            "stored_mib": footprint.tensor_bytes / 2**20, "packing kernel": manifest.kernel}


def score(config: ExperimentConfig, folder: Path, output: Path, progress: Progress) -> dict[str, Any]:
    """Load what was saved and measure it."""
    from llamaquant.experiment import measure

    result = measure(config, folder, output, "", progress)
    return {"f1": result.quality.f1_last_turn if result.quality else None, "kernel": result.kernel,
            "reload_error": result.reload_max_abs_logit_error, "load_s": result.seconds["load"]}


def row(config: ExperimentConfig, output: Path, load: bool) -> dict[str, Any]:
    """All measurements of one config; `failed` holds the reason where a step did not end."""
    log = output / "logs" / f"{config.name}.log"
    found: dict[str, Any] = {"config": config.name}
    started = time.perf_counter()
    try:
        found |= in_fresh_process(prepare, config, output, log=log, timeout_s=3600)
        if load:
            found |= in_fresh_process(score, config, found["folder"], output, log=log, timeout_s=3600)
    except LlamaQuantError as error:
        found["failed"] = str(error)
    print(f"{config.name}: {time.perf_counter() - started:.0f} s {found.get('failed', '')}", flush=True)
    return found


COLUMNS = (("bits/param", "bits", ".2f"), ("block bits", "block_bits", ".3f"), ("stored MiB", "stored_mib", ".2f"), ("F1", "f1", ".4f"),
           ("quantize s", "seconds", ".1f"), ("load s", "load_s", ".1f"), ("peak MiB", "peak_mib", ".0f"),
           ("reload error", "reload_error", ".3g"), ("kernel", "kernel", ""), ("failed", "failed", ""))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; columns that no row has are left out."""
    columns = [column for column in COLUMNS if any(r.get(column[1]) is not None for r in rows)]
    lines = [["config", *(title for title, _, _ in columns)], ["---"] * (len(columns) + 1)]
    for r in rows:
        lines.append([r["config"], *("" if r.get(key) is None else format(r[key], form) for _, key, form in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="", help="folder with a config.json; dummy weights")
    parser.add_argument("--stories", type=int, default=200, help="evaluated on the demo")
    parser.add_argument("--samples", type=int, default=128, help="calibration texts")
    parser.add_argument("--methods", default="", help="only these, comma-separated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default="", help="folder for checkpoints and logs; a temporary one if empty")
    given = parser.parse_args()
    output = Path(given.output or tempfile.mkdtemp(prefix="quantize-cost-")).resolve()
    wanted = [name for name in given.methods.split(",") if name]
    specs = [spec for spec in (SHAPE if given.shape else DEMO) if not wanted or spec["method"] in wanted]
    source = {"model": given.shape, "weights": "dummy"} if given.shape else {"limit": given.stories}
    configs = [from_spec(spec, device=given.device, calibration=CalibrationConfig(samples=given.samples), **source) for spec in specs]
    rows = [row(config, output, load=True) for config in configs]
    print(f"\n{given.shape or 'demo'}, {given.samples} calibration texts, output in {output}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
