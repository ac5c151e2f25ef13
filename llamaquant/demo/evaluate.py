"""Greedy CoQA scores of a small model, for its training: plain batched generation, gold answers in the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llamaquant.coqa.prompt import extract_answer, golds_for_turn, prompt_for_turn
from llamaquant.coqa.score import f1_em_lm_eval, f1_em_official
from llamaquant.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Turns = Literal["last", "all"]


@dataclass(frozen=True)
class DemoScore:
    """Mean scores in [0, 1] over `questions` questions; lm-eval's count and the official one (see coqa/score.py)."""

    f1: float
    em: float
    f1_official: float
    questions: int
    predictions: tuple[str, ...]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Mapping[str, Any]],
    turns: Turns = "last",
    batch_size: int = 256,
    max_new_tokens: int = 16,
) -> DemoScore:
    """Ask the last or all turns of `stories` greedily and score the answers."""
    if turns not in ("last", "all") or not stories:
        raise ConfigError(f"turns must be last or all, for at least 1 story, got {turns!r}, {len(stories)}: correct it")
    asked = [(s, t) for s in stories for t in range(len(s["questions"])) if turns == "all" or t == len(s["questions"]) - 1]
    asked.sort(key=lambda pair: len(pair[0]["story"]) + 60 * pair[1])
    predictions: list[str] = []
    for start in range(0, len(asked), batch_size):
        prompts = [prompt_for_turn(story, turn) for story, turn in asked[start : start + batch_size]]
        predictions += generate(model, tokenizer, prompts, max_new_tokens)
    golds = [golds_for_turn(story, turn) for story, turn in asked]
    lm_eval = [f1_em_lm_eval(p, g) for p, g in zip(predictions, golds, strict=True)]
    official = [f1_em_official(p, g)[0] for p, g in zip(predictions, golds, strict=True)]
    count = len(asked)
    return DemoScore(
        f1=sum(f1 for f1, _ in lm_eval) / count,
        em=sum(em for _, em in lm_eval) / count,
        f1_official=sum(official) / count,
        questions=count,
        predictions=tuple(predictions),
    )


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy answers, one line each; generation ends at the first token with a line break."""
    import torch

    encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    breaks = [i for token, i in tokenizer.get_vocab().items() if "Ċ" in token]  # Ċ: byte-level BPE's line feed
    with torch.inference_mode():
        output = model.generate(
            input_ids=encoded["input_ids"],  # [B, T]
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=[tokenizer.eos_token_id, *breaks],
            pad_token_id=tokenizer.pad_token_id,
        )  # [B, T + new]
    new = output[:, encoded["input_ids"].shape[1] :]
    return [extract_answer(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
