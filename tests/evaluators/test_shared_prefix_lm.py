"""The lm-eval backend inside lm-eval: its own `coqa` and the all-turns task, beside the stock HF backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llamaquant.coqa.data import to_hub_layout
from llamaquant.coqa.prompt import golds_for_turn, prompt_for_turn
from llamaquant.coqa.score import f1_em_official
from llamaquant.errors import ConfigError
from llamaquant.evaluators.shared_prefix_lm import TASKS, SharedPrefixLM
from tests.evaluators.shared_prefix_samples import make_model, make_tokenizer, sample_stories, write_stories

TOKENIZER = make_tokenizer()


def evaluate(lm: Any, task: Any, manager: TaskManager, kwargs: str = "max_gen_toks=10") -> dict[str, Any]:
    found = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, log_samples=True, gen_kwargs=kwargs,
                                    bootstrap_iters=0, random_seed=0, numpy_random_seed=0, torch_random_seed=0)
    assert found is not None
    return dict(found)


def all_turns(folder: Path) -> TaskManager:
    data = write_stories(folder, sample_stories())
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data_file": str(data)})


def responses(found: dict[str, Any], task: str) -> list[str]:
    return [sample["resps"][0][0] for sample in found["samples"][task]]


def test_all_turns_task_gives_the_stock_backends_answers_and_scores(tmp_path: Path) -> None:
    model, manager = make_model(TOKENIZER, seed=4), all_turns(tmp_path)
    shared = SharedPrefixLM(model, tokenizer=TOKENIZER)
    ours = evaluate(shared, "coqa_all_turns", manager)
    theirs = evaluate(HFLM(model, tokenizer=TOKENIZER, batch_size=1), "coqa_all_turns", manager)
    assert responses(ours, "coqa_all_turns") == responses(theirs, "coqa_all_turns")
    assert ours["results"]["coqa_all_turns"] == theirs["results"]["coqa_all_turns"]
    assert len(ours["samples"]["coqa_all_turns"]) == 15
    (stats,) = shared.generation_stats
    assert (stats.turns, stats.groups, shared.requests_not_shared) == (15, 5, 0)
    assert stats.prefill_tokens < stats.prompt_tokens / 2


def test_all_turns_task_asks_lm_evals_prompts_and_scores_by_the_official_rules(tmp_path: Path) -> None:
    found = evaluate(SharedPrefixLM(make_model(TOKENIZER, seed=4), tokenizer=TOKENIZER, first_line=True),
                     "coqa_all_turns", all_turns(tmp_path))
    asked = [(one, index) for one in sample_stories() for index in range(len(one["questions"]))]
    samples = sorted(found["samples"]["coqa_all_turns"], key=lambda sample: sample["doc_id"])
    scores = []
    for sample, (one, index) in zip(samples, asked, strict=True):
        assert sample["arguments"][0][0] == prompt_for_turn(one, index)
        scores.append(f1_em_official(sample["resps"][0][0], golds_for_turn(one, index)))
        assert (sample["f1_official"], sample["em_official"]) == pytest.approx(scores[-1])
    mean = sum(f1 for f1, _ in scores) / len(scores)
    assert found["results"]["coqa_all_turns"]["f1_official,none"] == pytest.approx(mean)


def test_lm_evals_own_coqa_runs_on_it_unchanged(tmp_path: Path) -> None:
    data = tmp_path / "hub.jsonl"
    data.write_text("".join(json.dumps(to_hub_layout(one)) + "\n" for one in sample_stories()), "utf-8")
    shipped = Path(lm_eval.__file__).parent / "tasks" / "coqa" / "default.yaml"
    task = tmp_path / "coqa.yaml"
    task.write_text(json.dumps({
        "include": str(shipped), "task": "coqa", "dataset_path": "json", "training_split": None,
        "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(tmp_path / "cache")}}), "utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = make_model(TOKENIZER, seed=6)
    ours = evaluate(SharedPrefixLM(model, tokenizer=TOKENIZER), "coqa", manager)
    theirs = evaluate(HFLM(model, tokenizer=TOKENIZER, batch_size=1), "coqa", manager)
    assert len(responses(ours, "coqa")) == 5  # the last turn of each story
    assert responses(ours, "coqa") == responses(theirs, "coqa")
    assert ours["results"]["coqa"] == theirs["results"]["coqa"]


def request(prompt: str, **kwargs: Any) -> Instance:
    return Instance("generate_until", {}, (prompt, kwargs), 0)


def test_requests_with_different_arguments_keep_their_order_and_sampling_goes_to_the_stock_backend() -> None:
    model = make_model(TOKENIZER, seed=8)
    one = sample_stories()[0]
    prompts = [prompt_for_turn(one, index) for index in range(5)]
    requests = [
        request(prompts[0], until=["\n"], max_gen_toks=6), request(prompts[1], until=["e"], max_gen_toks=9),
        request(prompts[2], until=["\n"], max_gen_toks=6), request(prompts[3], until=["e"], max_gen_toks=9),
        request(prompts[4], until=["\n"], max_gen_toks=6, num_beams=2),
        request(prompts[0], until="\n", max_gen_toks=6)]
    shared = SharedPrefixLM(model, tokenizer=TOKENIZER)
    stock = HFLM(model, tokenizer=TOKENIZER, batch_size=1)
    ours = shared.generate_until(requests, disable_tqdm=True)
    assert ours == [stock.generate_until([one], disable_tqdm=True)[0] for one in requests]
    assert shared.requests_not_shared == 1
    assert len(shared.generation_stats) == 3


def test_a_model_with_a_repetition_penalty_is_answered_by_the_stock_backend() -> None:
    model = make_model(TOKENIZER, seed=8)
    model.generation_config.repetition_penalty = 1.5
    requests = [request(prompt_for_turn(sample_stories()[0], index), until=["\n"], max_gen_toks=6) for index in (0, 1)]
    shared = SharedPrefixLM(model, tokenizer=TOKENIZER, batch_size=1)
    want = HFLM(model, tokenizer=TOKENIZER, batch_size=1).generate_until(requests, disable_tqdm=True)
    assert shared.generate_until(requests, disable_tqdm=True) == want
    assert shared.requests_not_shared == 2


def test_it_is_registered_and_the_task_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_model("llamaquant-shared-prefix") is SharedPrefixLM
    monkeypatch.delenv("LLAMAQUANT_COQA", raising=False)
    with pytest.raises(ConfigError, match="needs a CoQA file"):
        TaskManager(include_path=str(TASKS), include_defaults=False).load("coqa_all_turns")
