"""F1 and exact match of CoQA, per question.

Two scores, which differ only in how repeated reference answers count:
- official: the CoQA v1.0 evaluation (Reddy, Chen and Manning, 2019, "CoQA: A Conversational Question Answering
  Challenge", section 5): each of the n references is left out in turn, the best match among the other n-1 is taken,
  and the n values are averaged, so that models and humans are compared with equally many references.
- lm-eval: the task `coqa` of lm-eval-harness 0.4.13 drops repeated references (compared in lower case) first.

Text is normalised as in SQuAD's evaluation (Rajpurkar et al., 2016): lower case, no ASCII punctuation, no English
articles, single spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from llamaquant.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and repeated white space."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 where both texts are equal after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(gold))


def token_f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the bags of normalised tokens, in [0, 1]; two empty texts give 1."""
    predicted, expected = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def f1_em_official(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """(F1, exact match) of one answer as the official evaluation counts them, each in [0, 1].

    `golds` are all references of the turn, repetitions included. Raises DataError where there is none.
    """
    if not golds:
        raise DataError("a question needs at least 1 reference answer, got 0: check `answers` of the story")
    return _leave_one_out(token_f1, prediction, golds), _leave_one_out(exact_match, prediction, golds)


def f1_em_lm_eval(completion: str, golds: Sequence[str]) -> tuple[float, float]:
    """(F1, exact match) of one completion as lm-eval's task `coqa` counts them, each in [0, 1].

    The first line of the trimmed completion is scored against `golds`, of which the first of each spelling stays.
    """
    prediction = completion.strip().split("\n")[0]
    return f1_em_official(prediction, deduplicate(golds))


def deduplicate(golds: Sequence[str]) -> list[str]:
    """References without those that repeat an earlier one in lower case; the first spelling stays."""
    first: dict[str, str] = {}
    for gold in golds:
        first.setdefault(gold.lower(), gold)
    return list(first.values())


def _leave_one_out(score: Callable[[str, str], float], prediction: str, golds: Sequence[str]) -> float:
    scores = [score(prediction, gold) for gold in golds]
    if len(scores) == 1:
        return scores[0]
    return sum(max(scores[:left_out] + scores[left_out + 1 :]) for left_out in range(len(scores))) / len(scores)
