"""CoQA through lm-evaluation-harness's own task: the last turn of each story, its prompt, its F1 and EM."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamaquant.coqa.data import Story, stories_sha256, to_hub_layout
from llamaquant.coqa.prompt import extract_answer, golds_for_turn
from llamaquant.errors import DataError, TrialError
from llamaquant.isolation import Progress
from llamaquant.model import LoadedModel
from llamaquant.results import Quality, TurnPrediction

TASK_NAME = "llamaquant_coqa"
MAX_CONTEXT = 4096
"""Prompt plus answer, where the config does not say: the longest CoQA dialogue fits, and no batch is padded to 128 k."""

BATCH_SIZE = {"cpu": 8, "cuda": 64}
"""Questions per batch where the config does not say. Fixed per kind of device, so that a run can be repeated."""


def write_task(stories: Sequence[Story], folder: Path) -> Path:
    """Write a task file that includes lm-eval's own `coqa` and points to `stories`; returns the folder of this task.

    The same folder serves the command line: `lm_eval --include_path FOLDER --tasks llamaquant_coqa`.
    """
    import lm_eval

    own = folder.resolve() / f"coqa-{len(stories)}-{stories_sha256(stories)[:12]}"
    own.mkdir(parents=True, exist_ok=True)
    data = own / "stories.jsonl"
    lines = [json.dumps(to_hub_layout(story), ensure_ascii=True) for story in stories]
    _write_whole(data, "\n".join(lines) + "\n")
    shipped = Path(lm_eval.__file__).parent / "tasks" / "coqa" / "default.yaml"
    task = {"include": str(shipped), "task": TASK_NAME, "dataset_path": "json", "training_split": None,
            "dataset_kwargs": {"data_files": {"validation": str(data)}}}
    _write_whole(own / f"{TASK_NAME}.yaml", json.dumps(task, indent=1) + "\n")  # JSON is YAML
    return own


def _write_whole(path: Path, text: str) -> None:
    """Other workers may read or write the same file: it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def evaluate_last_turns(loaded: LoadedModel, stories: Sequence[Story], *, task_folder: Path, batch_size: int,
                        max_length: int, seed: int, progress: Progress) -> Quality:
    """Score the last turn of each story with lm-eval's `coqa`, batch size fixed (0: by kind of device), no response cache.

    Evaluation that runs out of memory halves its batch, notes it, and goes on; DataError for no stories.
    """
    if not stories:
        raise DataError("an evaluation must have stories, got none: raise limit")
    batch_size = batch_size or BATCH_SIZE[loaded.model.device.type]
    task = write_task(stories, task_folder)
    notes: list[str] = []
    while True:
        try:
            started = time.perf_counter()
            results = _simple_evaluate(loaded, task, batch_size, max_length, seed, progress)
            seconds = time.perf_counter() - started
            return _quality(results, stories, seconds, batch_size, tuple(notes))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if batch_size == 1:
                raise TrialError(f"evaluation must fit in memory at batch 1, got {error}: lower max_length") from error
            notes.append(f"evaluation ran out of memory at batch {batch_size}; went on with {batch_size // 2}")
            batch_size //= 2
        release_memory()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on whatever device."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what failed attempts still hold."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def context_length(loaded: LoadedModel, max_length: int) -> int:
    """`max_length`, or the model's own context, at most 4096 tokens."""
    context = int(getattr(loaded.model.config, "max_position_embeddings", MAX_CONTEXT))
    return max_length or min(context, MAX_CONTEXT)


def _simple_evaluate(loaded: LoadedModel, task: Path, batch_size: int, max_length: int, seed: int,
                     progress: Progress) -> dict[str, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    total = (task / "stories.jsonl").read_text("utf-8").count("\n")

    class Reporting(HFLM):
        """lm-eval's own backend; it only counts what is finished."""

        finished = 0

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            out = super()._model_generate(context, *args, **kwargs)
            self.finished += len(context)
            progress("quality", self.finished / total)
            return out

    model = Reporting(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size,
                      max_length=context_length(loaded, max_length))
    results = simple_evaluate(
        model=model, tasks=[TASK_NAME], task_manager=TaskManager(include_path=str(task), include_defaults=False),
        log_samples=True, bootstrap_iters=0, use_cache=None, cache_requests=False, random_seed=seed,
        numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed)
    assert results is not None  # None is for other ranks of a distributed run
    return dict(results)


def _quality(results: dict[str, Any], stories: Sequence[Story], seconds: float, batch_size: int,
             notes: tuple[str, ...]) -> Quality:
    by_id = {story["id"]: story for story in stories}
    predictions = [_prediction(sample, by_id) for sample in results["samples"][TASK_NAME]]
    if sorted(p.story_id for p in predictions) != sorted(by_id):
        raise TrialError(f"every story must be scored once, got {len(predictions)} answers for {len(by_id)} stories: "
                         "a half-finished evaluation has no score")
    scores = results["results"][TASK_NAME]
    return Quality(f1_last_turn=float(scores["f1,none"]), em_last_turn=float(scores["em,none"]),
                   predictions=tuple(predictions), seconds=seconds, batch_size=batch_size, notes=notes)


def _prediction(sample: dict[str, Any], by_id: dict[str, Story]) -> TurnPrediction:
    story = by_id[sample["doc"]["id"]]
    prompt = str(sample["arguments"][0][0])
    return TurnPrediction(
        story_id=story["id"], turn_id=int(story["questions"][-1]["turn_id"]), domain=str(story.get("source", "")),
        prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(), golds=tuple(golds_for_turn(story, len(story["questions"]) - 1)),
        prediction=extract_answer(str(sample["resps"][0][0])), f1=float(sample["f1"]), em=float(sample["em"]))
