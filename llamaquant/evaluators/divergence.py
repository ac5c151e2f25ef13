"""How far a model moved from its baseline, from the logits that the evaluation's prefill has anyway.

Per turn: log-likelihood of the gold answer, Kullback-Leibler divergence KL(baseline || model) of the next-token
distributions over the gold answer's tokens, and whether the answer changed. The baseline is kept compactly: per
answer token its 256 most likely tokens with their log-probabilities, and the log-probability of all others together
(the tail). KL on that partition, `kl_top256`, is a lower bound of the exact one, because merging outcomes never raises
a KL divergence (data-processing inequality; Cover & Thomas 2006, "Elements of Information Theory", 2.7 log-sum
inequality). Units are nats.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llamaquant.coqa.score import f1_em_official
from llamaquant.errors import DataError, TrialError
from llamaquant.evaluators.generate import GoldLogits
from llamaquant.evaluators.prefix_plan import Turn
from llamaquant.results import finite

TOP = 256
Array = NDArray[Any]
FORMAT = "llamaquant-baseline-1"


def turn_hash(turn: Turn) -> int:
    """64 bits of SHA-256 over a turn's key, prompt and gold tokens: equal only for the same question."""
    text = json.dumps([turn.key, turn.prompt, turn.gold])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Baseline:
    """What later models are compared with; N turns, M gold tokens, K = min(256, vocabulary).

    Attributes:
        fingerprint: identifies model, settings and data; a file with another one is not used.
        keys, answers: names of the turns and the baseline's answers, N each.
        hashes: uint64 [N], `turn_hash` of each turn.
        offsets: int64 [N + 1], gold tokens of turn n are rows offsets[n] to offsets[n + 1] below.
        gold_logprobs: float32 [M], log-probability of each gold token.
        top_ids, top_logprobs: [M, K], the most likely tokens.
        tail_logprobs: float32 [M], log of the probability of all other tokens.
    """

    fingerprint: str
    keys: tuple[str, ...]
    answers: tuple[str, ...]
    hashes: Array
    offsets: Array
    gold_logprobs: Array
    top_ids: Array
    top_logprobs: Array
    tail_logprobs: Array

    def save(self, folder: Path) -> Path:
        """Write `<fingerprint>.safetensors` in one step: a reader never sees a half-written file."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        path = baseline_path(folder, self.fingerprint)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        texts = {"format": FORMAT, "fingerprint": self.fingerprint, "keys": json.dumps(self.keys),
                 "answers": json.dumps(self.answers)}
        save_file(arrays, partial, metadata=texts)
        partial.replace(path)
        return path

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Baseline | None:
        """The cached baseline, None where there is none; DataError where the file is not what its name says."""
        from safetensors import SafetensorError, safe_open

        path = baseline_path(folder, fingerprint)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                texts = file.metadata() or {}
                arrays: dict[str, Any] = {name: file.get_tensor(name) for name in _ARRAYS}
                keys, answers = (tuple(json.loads(texts[name])) for name in ("keys", "answers"))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(f"a cached baseline must be a whole safetensors file, got {path} ({error}): "
                            "delete it, it is computed again") from None
        if texts.get("format") != FORMAT or texts.get("fingerprint") != fingerprint:
            raise DataError(f"a cached baseline must carry its own fingerprint, got {texts.get('fingerprint')!r} in "
                            f"{path}: delete it, it is computed again")
        return cls(fingerprint, keys, answers, **arrays)


_ARRAYS = ("hashes", "offsets", "gold_logprobs", "top_ids", "top_logprobs", "tail_logprobs")


def baseline_path(folder: Path, fingerprint: str) -> Path:
    return folder / f"baseline-{fingerprint}.safetensors"


class _GoldScorer:
    """Consumes `generate`'s gold logits; keeps one array of gold log-probabilities per turn."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = turns
        for turn in turns:
            if not turn.gold:
                raise DataError(f"a scored turn must have gold tokens, got none for {turn.key!r}: "
                                "encode with gold=True")
        self._gold: list[Array | None] = [None] * len(turns)

    def __call__(self, chunk: GoldLogits) -> None:
        logprobs = torch.log_softmax(chunk.logits, dim=-1)  # [M, V]
        gold = logprobs.gather(1, chunk.token_ids[:, None])[:, 0]
        bounds = np.cumsum((0, *chunk.counts))
        columns = [gold.cpu().numpy(), *self._columns(chunk, logprobs)]
        for turn, start, end in zip(chunk.turns, bounds[:-1], bounds[1:], strict=True):
            values = [column[start:end] for column in columns]
            if not np.isfinite(values[0]).all():
                raise TrialError(f"gold log-likelihoods must be finite, got {values[0].min()} for turn "
                                 f"{self.turns[turn].key!r}: the checkpoint is broken")
            self._keep(turn, values)

    def _columns(self, chunk: GoldLogits, logprobs: torch.Tensor) -> list[Array]:
        return []

    def _keep(self, turn: int, values: list[Array]) -> None:
        self._gold[turn] = values[0]

    def gold_logprobs(self) -> list[Array]:
        """Per turn, float32 [tokens]; TrialError that names the first turn that was never scored."""
        for turn, value in zip(self.turns, self._gold, strict=True):
            if value is None:
                raise TrialError(f"every turn must be scored, got no logits for {turn.key!r}: "
                                 "the evaluation ended half-way, run it again")
        return [value for value in self._gold if value is not None]


class BaselineRecorder(_GoldScorer):
    """Pass as `on_gold` to the baseline's `generate`, then call `finish`."""

    def __init__(self, turns: Sequence[Turn], top: int = TOP) -> None:
        super().__init__(turns)
        self._top = top
        self._rows: list[list[Array]] = [[] for _ in turns]

    def _columns(self, chunk: GoldLogits, logprobs: torch.Tensor) -> list[Array]:
        values, ids = logprobs.topk(min(self._top, logprobs.shape[1]), dim=-1)
        dtype = np.uint16 if logprobs.shape[1] <= 2**16 else np.int32
        tail = tail_logprobs(logprobs, ids)
        return [ids.cpu().numpy().astype(dtype), values.cpu().numpy(), tail.cpu().numpy()]

    def _keep(self, turn: int, values: list[Array]) -> None:
        super()._keep(turn, values)
        self._rows[turn] = [value.copy() for value in values[1:]]

    def finish(self, answers: Sequence[str], fingerprint: str) -> Baseline:
        """The baseline, once every turn has been scored and answered."""
        gold = self.gold_logprobs()
        if len(answers) != len(self.turns):
            raise DataError(f"every turn must have an answer, got {len(answers)} for {len(self.turns)} turns: "
                            "the evaluation ended half-way, run it again")
        top_ids, top_logprobs, tail = (np.concatenate([rows[column] for rows in self._rows]) for column in range(3))
        return Baseline(
            fingerprint=fingerprint, keys=tuple(turn.key for turn in self.turns), answers=tuple(answers),
            hashes=np.array([turn_hash(turn) for turn in self.turns], dtype=np.uint64),
            offsets=np.cumsum([0, *(len(values) for values in gold)]).astype(np.int64),
            gold_logprobs=np.concatenate(gold), top_ids=top_ids, top_logprobs=top_logprobs, tail_logprobs=tail)


class DivergenceMeter(_GoldScorer):
    """Pass as `on_gold` to a quantized model's `generate` on the same turns, then call `finish`.

    DataError where the baseline holds other questions; it names the first one that differs.
    """

    def __init__(self, turns: Sequence[Turn], baseline: Baseline) -> None:
        super().__init__(turns)
        check_same_questions(turns, baseline)
        self._baseline = baseline
        self._kl: list[Array] = [np.empty(0)] * len(turns)

    def _columns(self, chunk: GoldLogits, logprobs: torch.Tensor) -> list[Array]:
        base = self._baseline
        rows = np.concatenate([np.arange(base.offsets[turn], base.offsets[turn + 1]) for turn in chunk.turns])
        ids = torch.from_numpy(base.top_ids[rows].astype(np.int64)).to(logprobs.device)  # [M, K]
        if int(ids.max()) >= logprobs.shape[1]:
            raise DataError(f"baseline and model must share one vocabulary, got token {int(ids.max())} for "
                            f"{logprobs.shape[1]} logits: compute the baseline again")
        top = torch.from_numpy(base.top_logprobs[rows]).to(logprobs.device)
        tail = torch.from_numpy(base.tail_logprobs[rows]).to(logprobs.device)
        return [kl_on_partition(top, tail, logprobs, ids).cpu().numpy()]

    def _keep(self, turn: int, values: list[Array]) -> None:
        super()._keep(turn, values)
        self._kl[turn] = values[1]

    def finish(self, answers: Sequence[str], golds: Sequence[Sequence[str]]) -> Divergence:
        """Per-turn values; `golds` are all reference answers of each turn, for the flips."""
        same, flipped = compare_answers(self._baseline.answers, answers, golds)
        return Divergence(
            keys=self._baseline.keys, gold_tokens=np.diff(self._baseline.offsets),
            gold_logprob=np.array([float(values.sum(dtype=np.float64)) for values in self.gold_logprobs()]),
            kl_top256=np.array([float(values.sum(dtype=np.float64)) for values in self._kl]),
            agrees=same, flipped=flipped)


@dataclass(frozen=True)
class Divergence:
    """Per turn, against the baseline; arrays of N turns, sums over a turn's gold tokens in nats.

    Attributes:
        keys: names of the turns.
        gold_tokens: int64, tokens of the gold answer.
        gold_logprob: log-likelihood of the gold answer.
        kl_top256: KL(baseline || model) on the top-256-plus-tail partition, a lower bound of the exact one.
        agrees: the answer is the baseline's, character by character.
        flipped: the answer became right or became wrong (Dutta et al. 2024, "Accuracy is Not All You Need");
            right is an official exact match with any reference.
    """

    keys: tuple[str, ...]
    gold_tokens: Array
    gold_logprob: Array
    kl_top256: Array
    agrees: Array
    flipped: Array

    def to_metrics(self) -> dict[str, float]:
        """Means over gold tokens (nats per token) and over turns (rates in 0..1)."""
        tokens = int(self.gold_tokens.sum())
        return finite({
            "quality/gold_nll_nats_per_token": -float(self.gold_logprob.sum()) / tokens,
            "quality/kl_top256_nats_per_token": float(self.kl_top256.sum()) / tokens,
            "quality/flip_rate": float(self.flipped.mean()),
            "quality/answer_agreement": float(self.agrees.mean()),
        })


def compare_answers(baseline: Sequence[str], answers: Sequence[str],
                    golds: Sequence[Sequence[str]]) -> tuple[Array, Array]:
    """(agrees, flipped), bool [N] each; DataError where the three have different lengths or a turn has no gold."""
    if not len(baseline) == len(answers) == len(golds):
        raise DataError(f"baseline, answers and golds must cover the same turns, got {len(baseline)}, {len(answers)} "
                        f"and {len(golds)}: evaluate the same stories")
    same = np.array([old.strip() == new.strip() for old, new in zip(baseline, answers, strict=True)])
    right = [[f1_em_official(answer, gold)[1] > 0 for answer, gold in zip(texts, golds, strict=True)]
             for texts in (baseline, answers)]
    return same, np.array(right[0]) != np.array(right[1])


def check_same_questions(turns: Sequence[Turn], baseline: Baseline) -> None:
    """DataError that names the first turn whose key, prompt or gold tokens are not the baseline's."""
    for index, turn in enumerate(turns):
        key = baseline.keys[index] if index < len(baseline.keys) else "nothing"
        if key != turn.key or int(baseline.hashes[index]) != turn_hash(turn):
            raise DataError(f"the baseline must hold the same questions, got {key!r} with other tokens or place for "
                            f"{turn.key!r} (turn {index}): compute the baseline on these stories")
    if len(baseline.keys) > len(turns):
        raise DataError(f"the baseline must hold the same questions, got {baseline.keys[len(turns)]!r}, which is not "
                        "asked here: compute the baseline on these stories")


def tail_logprobs(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log of the total probability of all tokens but `ids`: logprobs [M, V], ids [M, K] -> [M]; -inf where K = V."""
    return torch.logsumexp(logprobs.scatter(1, ids, float("-inf")), dim=-1)


def kl_on_partition(top: torch.Tensor, tail: torch.Tensor, logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats over {each of `ids`, all the rest}.

    Args:
        top: log p of `ids`, [M, K]; tail: log p of the rest, [M].
        logprobs: log q of the whole vocabulary, [M, V].
        ids: int64 [M, K].

    Returns:
        float64 [M], at least 0 (rounding may make an exact 0 slightly negative; that is cut off).
    """
    other = logprobs.gather(1, ids).double()
    other_tail = tail_logprobs(logprobs, ids).double()
    top, tail = top.double(), tail.double()
    inner = (top.exp() * (top - other)).sum(dim=-1)
    rest = torch.where(tail.isneginf(), torch.zeros_like(tail), tail.exp() * (tail - other_tail))
    return (inner + rest).clamp_min(0.0)
