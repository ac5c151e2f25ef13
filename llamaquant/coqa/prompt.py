"""The prompt layout of lm-eval-harness 0.4.13's task `coqa` (version 3.0), for any turn of a story.

Layout: the story, a blank line, then `Q: question`, a blank line and `A: answer` per earlier turn with its first gold
answer, then the question asked and a bare `A:`. The model goes on from there and is stopped at the next question.
lm-eval asks the last turn of a story only; here every turn can be asked.
Stories are dicts in the layout of the official CoQA JSON (`story`, `questions`, `answers`, `additional_answers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamaquant.errors import DataError

STOP = "\nQ:"
"""Generation ends before this string: the model has begun to ask the next question itself."""

Story = Mapping[str, Any]


def prompt_for_turn(story: Story, turn_index: int) -> str:
    """Prompt that asks turn `turn_index` (0 is the first), with gold answers in the turns before it.

    Raises DataError where the story has no such turn.
    """
    questions = story["questions"]
    if not 0 <= turn_index < len(questions):
        raise DataError(
            f"turn_index must be between 0 and {len(questions) - 1} for story {story.get('id', '?')!r},"
            f" got {turn_index}: ask a turn that the story has"
        )
    history = _turns(story, turn_index)
    return f"{story['story']}\n\n{history}Q: {questions[turn_index]['input_text']}\n\nA:"


def last_turn_prompt(story: Story) -> str:
    """The one prompt that lm-eval's own task asks for this story."""
    return prompt_for_turn(story, len(story["questions"]) - 1)


def full_dialogue(story: Story) -> str:
    """The story and all its turns with the first gold answers: what the prompt of a turn after the last would hold."""
    return f"{story['story']}\n\n{_turns(story, len(story['questions']))}"


def golds_for_turn(story: Story, turn_index: int) -> list[str]:
    """Reference answers of one turn: the answer of the dialogue first, then the additional ones in their order."""
    answers = [story["answers"], *(story.get("additional_answers") or {}).values()]
    return [turns[turn_index]["input_text"] for turns in answers]


def extract_answer(completion: str) -> str:
    """What lm-eval scores of a raw completion: the text before STOP, trimmed, its first line."""
    return completion.split(STOP)[0].strip().split("\n")[0]


def _turns(story: Story, count: int) -> str:
    questions: Sequence[Story] = story["questions"][:count]
    answers: Sequence[Story] = story["answers"][:count]
    return "".join(
        f"Q: {question['input_text']}\n\nA: {answer['input_text']}\n\n" for question, answer in zip(questions, answers, strict=True)
    )
