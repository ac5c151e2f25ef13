"""CoQA stories -> token ids of every turn's prompt and gold answer, equal to what lm-eval's HF backend encodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamaquant.coqa.data import Story, check_stories
from llamaquant.coqa.prompt import full_dialogue, prompt_for_turn
from llamaquant.errors import ConfigError, DataError
from llamaquant.evaluators.prefix_plan import Turn
from llamaquant.evaluators.prefix_stop import StopRule


def encode_prompts(tokenizer: Any, texts: Sequence[str], max_prompt_tokens: int,
                   add_bos_token: bool | None = None, truncation: bool = False) -> list[tuple[int, ...]]:
    """Token ids as lm-eval 0.4.13's `HFLM.tok_batch_encode` gives them, without its padding.

    Special tokens follow the tokenizer (or `add_bos_token`), except where the text starts with the BOS string
    already; too long prompts lose tokens on the left.
    """
    bos = getattr(tokenizer, "bos_token", None)
    encoded: list[tuple[int, ...]] = [()] * len(texts)
    with_bos = [index for index, text in enumerate(texts) if bos is not None and text.startswith(bos)]
    marked = set(with_bos)
    without = [index for index in range(len(texts)) if index not in marked]
    chosen = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}
    for indices, options in ((with_bos, {"add_special_tokens": False}), (without, chosen)):
        if indices:
            batch = tokenizer([texts[index] for index in indices], truncation=truncation, **options)["input_ids"]
            for index, ids in zip(indices, batch, strict=True):
                encoded[index] = tuple(ids[-max_prompt_tokens:])
    return encoded


def max_prompt_tokens(model: Any, tokenizer: Any, rule: StopRule, max_length: int | None = None) -> int:
    """Longest prompt that leaves room for an answer, as lm-eval computes it; ConfigError where there is no room."""
    from lm_eval.models.utils import resolve_max_length

    length = max_length or resolve_max_length(model.config, tokenizer)
    if length <= rule.max_new_tokens:
        raise ConfigError(f"max_new_tokens must be below the model's context of {length} tokens, "
                          f"got {rule.max_new_tokens}: ask for shorter answers")
    return length - rule.max_new_tokens


def turns_of_stories(tokenizer: Any, stories: Sequence[Story], limit_tokens: int, *, gold: bool = True,
                     add_bos_token: bool | None = None) -> list[Turn]:
    """Every turn of every story, in order, ready for `generate`.

    The gold answer of a turn is scored on the tokens that the dialogue itself has there, up to and including the one
    that holds the answer's last character: Llama 3 merges a final full stop with the line breaks behind it. So all
    turns of a dialogue are prefixes of one sequence. A turn whose prompt is no prefix of it (a merge across the
    boundary, or a truncated prompt) gets the tokens of its own text and is prefilled alone.

    Args:
        limit_tokens: longest prompt (see `max_prompt_tokens`).
        gold: also encode the gold answers, for likelihoods and divergence.

    Raises:
        DataError: the first story or turn that is malformed (see `coqa.data.check_stories`).
    """
    if not stories:
        raise DataError("an evaluation must have stories, got none: raise limit")
    check_stories(stories)
    turns: list[Turn] = []
    for story in stories:
        turns.extend(_turns_of_story(tokenizer, story, limit_tokens, gold, add_bos_token))
    return turns


def turn_key(story: Story, turn_index: int) -> str:
    """Name of a turn in results and errors: `story_id:turn_id`."""
    return f"{story['id']}:{story['questions'][turn_index]['turn_id']}"


def _turns_of_story(tokenizer: Any, story: Story, limit_tokens: int, gold: bool,
                    add_bos_token: bool | None) -> list[Turn]:
    count = len(story["questions"])
    prompts = [prompt_for_turn(story, index) for index in range(count)]
    answered = [f"{prompt} {story['answers'][index]['input_text']}" for index, prompt in enumerate(prompts)]
    texts = [*prompts, *answered, full_dialogue(story)] if gold else prompts
    whole_length = 2**31  # prompts are cut below; the dialogue and the answered prompts must be whole to compare
    encoded = encode_prompts(tokenizer, texts, whole_length, add_bos_token)
    turns = []
    for index in range(count):
        ids = encoded[index]
        reference = _gold_tokens(ids, encoded[count + index], encoded[-1]) if gold else ()
        turns.append(Turn(turn_key(story, index), ids[-limit_tokens:], reference))
        if gold and not reference:
            raise DataError(f"a gold answer must have tokens, got none for turn {turn_key(story, index)!r}: "
                            "complete or remove the story")
    return turns


def _gold_tokens(prompt: tuple[int, ...], answered: tuple[int, ...], dialogue: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens of the answer: those of the dialogue where its prompt is a prefix of it, else those of its own text."""
    if dialogue[: len(prompt)] != prompt:
        return answered[len(prompt):]
    common = len(prompt)
    while common < min(len(answered), len(dialogue)) and answered[common] == dialogue[common]:
        common += 1
    return dialogue[len(prompt): common + (common < len(answered))]
