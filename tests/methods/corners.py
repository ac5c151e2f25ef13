"""What the contract test does in processes of its own: quantize corners, and load what was saved. Results go to a file of
JSON lines as they come, so that a vendor that ends the process (they do) costs only the corners after it."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Corner = tuple[str, dict[str, Any]]
STORIES = 6
SAMPLES = 12
DTYPE = "bf16"


def label_of(corner: Corner) -> str:
    method, options = corner
    return "-".join([method, *(f"{key}={value}" for key, value in options.items())])


def answer_nll(loaded: Any) -> float:
    """Mean negative log-likelihood in nats of the gold answers' tokens, given story and dialogue."""
    import torch

    from llamaquant import demo
    from llamaquant.coqa.prompt import last_turn_prompt

    total, count = 0.0, 0
    with torch.inference_mode():
        for story in demo.demo_stories("evaluation", STORIES, 0):
            prompt = loaded.tokenizer(last_turn_prompt(story))["input_ids"]
            answer = loaded.tokenizer(" " + story["answers"][-1]["input_text"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([prompt + answer])  # [1, T]
            logits = loaded.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()  # [A, V]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
            count += len(answer)
    return total / count


def _each(corners: Sequence[Corner], results: Path, work: Callable[[Corner], dict[str, Any]]) -> None:
    for corner in corners:
        started = time.perf_counter()
        try:
            outcome = work(corner)
        except Exception as error:  # one corner's failure is that corner's result
            traceback.print_exc()
            outcome = {"error": f"{type(error).__name__}: {error}"}
        with open(results, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"label": label_of(corner), "seconds": time.perf_counter() - started} | outcome) + "\n")


def weights_hash(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.read_bytes())
    return total.hexdigest()


def prepare_all(corners: Sequence[Corner], root: Path, results: Path, progress: Any) -> None:
    """Quantize every corner into a folder of `root`, twice where it ends in `again`."""
    from llamaquant import demo
    from llamaquant.config import QuantizationConfig
    from llamaquant.coqa.prompt import full_dialogue
    from llamaquant.methods import get_method
    from llamaquant.methods.base import Source
    from llamaquant.model import ModelShape

    texts = [full_dialogue(story) for story in demo.demo_stories("calibration", SAMPLES, 0)]

    def work(corner: Corner) -> dict[str, Any]:
        quantization = QuantizationConfig(corner[0], **{k: v for k, v in corner[1].items() if k != "again"})
        method = get_method(quantization.method)
        shape = ModelShape.from_folder(demo.MODEL_PATH)
        method.check_shape(quantization.options, shape)
        folder = root / label_of(corner)
        folder.mkdir(parents=True)
        loaded = method.prepare(Source(demo.MODEL_PATH, "cpu", DTYPE, 0), quantization.options,
                                texts if method.needs_calibration else [], folder)
        return {"nll": answer_nll(loaded), "kernel": loaded.kernel, "loader": loaded.loader, "hash": weights_hash(folder),
                "predicted": method.predicted_bytes(quantization.options, shape, DTYPE)}

    _each(corners, results, work)


def load_all(corners: Sequence[Corner], root: Path, results: Path, progress: Any) -> None:
    """Load every corner's folder as a stranger would."""
    from llamaquant.methods import get_method, parse_method

    def work(corner: Corner) -> dict[str, Any]:
        loaded = get_method(parse_method(corner[0])).load(root / label_of(corner), "cpu", DTYPE)
        return {"nll": answer_nll(loaded), "kernel": loaded.kernel, "loader": loaded.loader}

    _each(corners, results, work)
