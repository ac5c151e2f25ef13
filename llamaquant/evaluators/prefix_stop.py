"""When an answer ends, and what text it is: lm-eval's rules for greedy generation, without its batch effects.

lm-eval 0.4.13 (models/huggingface.py) generates until the stop string shows up in every row of its batch, then cuts
each text at the first stop string; its task `coqa` scores the first line of the trimmed text. Here a row ends as soon
as its own scored text can no longer change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StopRule:
    """Where generation ends.

    Attributes:
        until: strings that end an answer; the text before the first one is kept.
        first_line: the answer is the first line of the trimmed text, as `coqa` scores it; generation ends with it.
        max_new_tokens: tokens after which an answer is cut (lm-eval's default is 256).
    """

    until: tuple[str, ...] = ("\nQ:",)
    first_line: bool = True
    max_new_tokens: int = 256


class StopChecker:
    """Decides per row, from its generated token ids, whether the answer is complete."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], rule: StopRule) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self.rule = rule
        eos_text = tokenizer.decode(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else ""
        self._cuts = tuple(term for term in (*rule.until, eos_text) if term)
        # Only a token that holds the last character of a stop string can complete it: most steps decode nothing.
        endings = {term[-1] for term in rule.until if term} | ({"\n"} if rule.first_line else set())
        self._endings = frozenset(endings)
        self._any_token_may_end = any(not char.isascii() for char in endings)
        self._may_end: dict[int, bool] = {}

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """`tokens`: all ids generated so far in one row, at least one."""
        last = tokens[-1]
        if last in self._eos_ids or len(tokens) >= self.rule.max_new_tokens:
            return True
        if not self._token_may_end(last):
            return False
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return any(term in text for term in self._cuts) or (self.rule.first_line and "\n" in text.lstrip())

    def text(self, tokens: Sequence[int]) -> str:
        """The answer: decoded, cut at the first stop string and, with `first_line`, to the first line, trimmed."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        for term in self._cuts:
            text = text.split(term)[0]
        return text.strip().split("\n")[0].rstrip() if self.rule.first_line else text

    def _token_may_end(self, token: int) -> bool:
        if self._any_token_may_end:
            return True
        known = self._may_end.get(token)
        if known is None:
            piece = self._tokenizer.decode([token])
            known = self._may_end[token] = any(char in piece for char in self._endings)
        return known
