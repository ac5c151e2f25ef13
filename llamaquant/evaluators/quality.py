"""Every turn of every story at the price of one prefill, by the official rules, with divergence from the baseline."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamaquant.coqa.data import Story
from llamaquant.coqa.prompt import golds_for_turn, prompt_for_turn
from llamaquant.coqa.score import f1_em_official
from llamaquant.errors import BackendError, TrialError
from llamaquant.evaluators.harness import out_of_memory, release_memory
from llamaquant.model import LoadedModel
from llamaquant.results import AllTurns, TurnPrediction

HALVINGS = 4
"""How often the memory budget is halved before an evaluation that does not fit is given up."""


def evaluate_all_turns(loaded: LoadedModel, stories: Sequence[Story], *, max_length: int, cache: Path, own: str,
                       baseline: str) -> AllTurns:
    """Answer every turn greedily and score it; with `baseline`, also the divergence from that run's distributions.

    Args:
        max_length: prompt plus answer in tokens.
        cache: folder of baseline distributions.
        own: fingerprint of this experiment; where it is the baseline itself, its distributions are written to `cache`.
        baseline: fingerprint of the baseline experiment; empty for none. Where its distributions are not in `cache`,
            divergence is left out and a note says so.

    Raises:
        BackendError: the model has features that shared-prefix decoding lacks.
        TrialError: NaN logits, or no memory for even a sixteenth of the first budget.
    """
    from llamaquant.evaluators.generate import default_budget_bytes, generate
    from llamaquant.evaluators.prefix_stop import StopRule
    from llamaquant.evaluators.prefix_tokens import max_prompt_tokens, turns_of_stories

    rule = StopRule()
    turns = turns_of_stories(loaded.tokenizer, stories, max_prompt_tokens(loaded.model, loaded.tokenizer, rule, max_length))
    budget = default_budget_bytes(loaded.model.device)
    notes: list[str] = []
    for _ in range(HALVINGS + 1):
        scorer, note = _gold_scorer(turns, cache, own, baseline)
        try:
            started = time.perf_counter()
            generation = generate(loaded.model, loaded.tokenizer, turns, rule, budget_bytes=budget, on_gold=scorer)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            notes.append(f"scoring all turns ran out of memory with a budget of {budget >> 20} MiB; went on with half of it")
            budget //= 2
        release_memory()
    else:
        raise TrialError(f"scoring all turns must fit in memory, got none left after {HALVINGS} halvings: use turns=last")
    seconds = time.perf_counter() - started
    notes += [note] if note else []
    predictions = _scored(stories, generation.texts)
    return AllTurns(predictions=predictions, seconds=seconds, turns_alone=generation.stats.turns_alone,
                    divergence=_divergence(scorer, generation.texts, predictions, cache, own), notes=tuple(notes))


def _gold_scorer(turns: Sequence[Any], cache: Path, own: str, baseline: str) -> tuple[Any, str]:
    """What listens to the logits over the gold answers, and a note where there is nothing to compare with."""
    from llamaquant.evaluators.divergence import Baseline, BaselineRecorder, DivergenceMeter

    if not baseline:
        return None, ""
    if own == baseline:
        return BaselineRecorder(turns), ""
    stored = Baseline.load(cache, baseline)
    if stored is None:
        return None, "divergence not measured: the baseline has no stored distributions"
    return DivergenceMeter(turns, stored), ""


def _divergence(scorer: Any, texts: Sequence[str], predictions: Sequence[TurnPrediction], cache: Path, own: str) -> dict[str, float]:
    """Metrics against the baseline; of the baseline itself its gold likelihood, once its distributions are stored."""
    from llamaquant.evaluators.divergence import BaselineRecorder

    if scorer is None:
        return {}
    if isinstance(scorer, BaselineRecorder):
        stored = scorer.finish(texts, own)
        stored.save(cache)
        return {"quality/gold_nll_nats_per_token": -float(stored.gold_logprobs.mean())}
    metrics: dict[str, float] = scorer.finish(texts, [p.golds for p in predictions]).to_metrics()
    return metrics


def _scored(stories: Sequence[Story], texts: Sequence[str]) -> tuple[TurnPrediction, ...]:
    """One prediction per turn, in the order of stories and turns; TrialError where answers are missing."""
    places = [(story, index) for story in stories for index in range(len(story["questions"]))]
    if len(places) != len(texts):
        raise TrialError(f"every turn must have an answer, got {len(texts)} for {len(places)} turns: a half-finished evaluation has "
                         "no score")
    predictions = []
    for (story, index), text in zip(places, texts, strict=True):
        golds = tuple(golds_for_turn(story, index))
        f1, em = f1_em_official(text, golds)
        predictions.append(TurnPrediction(
            story_id=story["id"], turn_id=int(story["questions"][index]["turn_id"]), domain=str(story.get("source", "")),
            prompt_sha256=hashlib.sha256(prompt_for_turn(story, index).encode()).hexdigest(), golds=golds, prediction=text, f1=f1, em=em))
    return tuple(predictions)


def try_all_turns(loaded: LoadedModel, stories: Sequence[Story], **kwargs: Any) -> tuple[AllTurns | None, str]:
    """The same, or a note why this model cannot be scored so; lm-eval's own figure then stands alone."""
    try:
        return evaluate_all_turns(loaded, stories, **kwargs), ""
    except BackendError as error:
        return None, f"all turns not scored: {error}"
