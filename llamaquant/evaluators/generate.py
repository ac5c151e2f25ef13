"""Greedy answers to all turns of many dialogues at the price of one prefill per dialogue.

One forward over the longest sequence of a dialogue (its carrier) gives the KV cache of every turn's prompt, the first
token of every answer and the log-probabilities of the gold answers. All turns of all dialogues in a batch are then
decoded in lockstep, each from its own position in the shared prefix; a row leaves the batch when its answer is done.
Only the model's forward is called, so every quantization method is served by the same code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llamaquant.errors import BackendError, TrialError
from llamaquant.evaluators.prefix_attention import PrefixStore, active_store, shared_prefix_attention
from llamaquant.evaluators.prefix_plan import MemoryModel, PrefixGroup, Turn, check_turns, plan_batches, plan_groups
from llamaquant.evaluators.prefix_stop import StopChecker, StopRule

NEUTRAL_GENERATION = {
    "repetition_penalty": (None, 1.0), "encoder_repetition_penalty": (None, 1.0), "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,), "suppress_tokens": (None,), "begin_suppress_tokens": (None,), "sequence_bias": (None,),
    "forced_bos_token_id": (None,), "forced_eos_token_id": (None,), "min_length": (None, 0),
    "min_new_tokens": (None, 0), "num_beams": (None, 1), "guidance_scale": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
}
"""Fields of a generation config that change greedy output, with the values that leave it alone."""

MIB = 2**20


@dataclass(frozen=True)
class GoldLogits:
    """Logits over gold answer tokens of some turns, as one prefill chunk gives them.

    Attributes:
        turns: indices of the turns in the run's list.
        counts: gold tokens of each, in the same order.
        token_ids: the gold tokens, int64 [M], M = sum of counts.
        logits: float32 [M, V]; row m predicts token_ids[m].
    """

    turns: tuple[int, ...]
    counts: tuple[int, ...]
    token_ids: torch.Tensor
    logits: torch.Tensor


GoldConsumer = Callable[[GoldLogits], None]


@dataclass(frozen=True)
class GenerationStats:
    """What a run of `generate` cost.

    Attributes:
        turns: questions answered.
        groups: carriers run through the model; `turns` minus `groups` prefills were saved.
        turns_alone: turns that no other turn shares a prefix with, prefilled alone.
        batches: lockstep decodes.
        prompt_tokens: prompt tokens of all turns, as a backend that shares nothing would prefill them.
        prefill_tokens: tokens that were prefilled.
        decode_steps: forwards after prefill.
        decoded_tokens: tokens generated.
    """

    turns: int
    groups: int
    turns_alone: int
    batches: int
    prompt_tokens: int
    prefill_tokens: int
    decode_steps: int
    decoded_tokens: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Generation:
    """Answers in the order of the turns: text under the stop rule, and the raw token ids."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    stats: GenerationStats


@dataclass
class _Row:
    turn: int
    dialogue: int
    length: int
    tokens: list[int] = field(default_factory=list)


def generate(model: Any, tokenizer: Any, turns: Sequence[Turn], rule: StopRule | None = None, *,
             budget_bytes: int | None = None, prefill_chunk_tokens: int | None = None,
             on_gold: GoldConsumer | None = None) -> Generation:
    """Answer every turn greedily; answers equal those of lm-eval's HF backend on the same prompts.

    Args:
        model: transformers causal LM whose layers use the attention interface, in eval mode, any dtype.
        tokenizer: its tokenizer.
        turns: what to answer; keys must be unique.
        rule: where answers end (default: lm-eval's `coqa`).
        budget_bytes: memory for KV caches and attention scores of one batch (default: a share of what is free).
        prefill_chunk_tokens: packed tokens per prefill forward (default: 2,048 on CPU, 8,192 elsewhere).
        on_gold: called with the logits over the gold answers of the turns that have some.

    Raises:
        DataError: a turn without a prompt, or two turns with one key.
        BackendError: the model has features that shared-prefix decoding lacks, or one turn is over the budget.
        TrialError: a logit is not finite; names the turn.
    """
    rule = rule or StopRule()
    check_turns(turns)
    check_greedy(model)
    groups = plan_groups(turns)
    memory = memory_model(model, rule.max_new_tokens)
    batches = plan_batches(groups, memory, budget_bytes or default_budget_bytes(model.device))
    run = _Run(model, turns, StopChecker(tokenizer, eos_ids(model, tokenizer), rule), on_gold,
               prefill_chunk_tokens or (2048 if model.device.type == "cpu" else 8192))
    with torch.inference_mode(), shared_prefix_attention(model):
        for batch in batches:
            run.answer(batch)
    return Generation(
        texts=tuple(run.checker.text(tokens) for tokens in run.answers),
        token_ids=tuple(tuple(tokens) for tokens in run.answers),
        stats=GenerationStats(
            turns=len(turns), groups=len(groups), turns_alone=sum(len(group.members) == 1 for group in groups),
            batches=len(batches), prompt_tokens=sum(len(turn.prompt) for turn in turns),
            prefill_tokens=run.prefill_tokens, decode_steps=run.decode_steps,
            decoded_tokens=sum(len(tokens) for tokens in run.answers),
            prefill_seconds=run.prefill_seconds, decode_seconds=run.decode_seconds))


def check_greedy(model: Any) -> None:
    """BackendError where the model's generation config changes what greedy decoding gives (a penalty, a ban)."""
    config = getattr(model, "generation_config", None)
    for name, neutral in NEUTRAL_GENERATION.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise BackendError(f"generation_config.{name} must be neutral for shared-prefix decoding, got {value!r}: "
                               "evaluate this model with lm-eval's own backend or reset the field")


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: those of the generation config, as `generate` has it, and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [configured] if isinstance(configured, int) else list(configured or ())
    return frozenset(ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id])


def memory_model(model: Any, suffix_tokens: int) -> MemoryModel:
    """Bytes per token, pair and row of this model, from its config."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    value_bytes = torch.empty((), dtype=model.dtype).element_size()
    return MemoryModel(
        kv_bytes_per_token=2 * config.num_hidden_layers * kv_heads * head_size * value_bytes,
        score_bytes_per_pair=heads * 8,  # float32 scores, their half-precision copy, the mask
        bytes_per_row=config.vocab_size * 8,  # logits in the model's dtype and in float32
        suffix_tokens=suffix_tokens)


def default_budget_bytes(device: Any) -> int:
    """70% of a CUDA device's free memory (the rest: activations); on CPU a quarter of the free RAM, at most 4 GiB."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + reusable) * 0.7)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(max(free // 4, 512 * MIB), 4096 * MIB))


class _Run:
    """One call of `generate`: answers so far, and the counters of its stats."""

    def __init__(self, model: Any, turns: Sequence[Turn], checker: StopChecker, on_gold: GoldConsumer | None,
                 chunk_tokens: int) -> None:
        self.model, self.turns, self.checker, self.on_gold = model, turns, checker, on_gold
        self.chunk_tokens = chunk_tokens
        self.answers: list[list[int]] = [[] for _ in turns]
        self.prefill_tokens = self.decode_steps = 0
        self.prefill_seconds = self.decode_seconds = 0.0

    def answer(self, batch: Sequence[PrefixGroup]) -> None:
        """Prefill the carriers of one batch, then decode all of its turns."""
        start = time.perf_counter()
        store = PrefixStore(len(batch), max(len(group.tokens) for group in batch))
        with active_store(store):
            rows = [row for chunk in self._chunks(batch) for row in self._prefill(store, batch, chunk)]
            middle = time.perf_counter()
            self._decode(store, rows)
        self.prefill_seconds += middle - start
        self.decode_seconds += time.perf_counter() - middle

    def _chunks(self, batch: Sequence[PrefixGroup]) -> list[list[int]]:
        chunks: list[list[int]] = []
        room = 0
        for index, group in enumerate(batch):
            if not chunks or len(group.tokens) > room:
                chunks.append([])
                room = self.chunk_tokens
            chunks[-1].append(index)
            room -= len(group.tokens)
        return chunks

    def _prefill(self, store: PrefixStore, batch: Sequence[PrefixGroup], chunk: Sequence[int]) -> list[_Row]:
        """Run the carriers `chunk` packed as [1, N]; returns the rows of their turns, first token included."""
        segments: list[tuple[int, int]] = []
        spans: list[tuple[int, int, int, int]] = []  # turn, place in the batch, first row of its logits, their count
        kept: list[int] = []  # positions whose logits are needed
        offset = 0
        for index in chunk:
            group = batch[index]
            segments.append((offset, len(group.tokens)))
            for member in group.members:
                turn = self.turns[member]
                count = max(1, len(turn.gold)) if self.on_gold else 1
                first = offset + len(turn.prompt) - 1
                spans.append((member, index, len(kept), count))
                kept.extend(range(first, first + count))
            offset += len(group.tokens)
        device = self.model.device
        store.begin_prefill(segments, chunk, device)
        ids = torch.tensor([[token for index in chunk for token in batch[index].tokens]], device=device)
        positions = torch.tensor([[place for _, length in segments for place in range(length)]], device=device)
        logits = self._forward(ids, positions, torch.tensor(kept, device=device))  # [K, V]
        self.prefill_tokens += offset
        self._check_finite(logits.amax(dim=-1), [self.turns[member].key for member, _, _, n in spans for _ in range(n)])
        self._score_gold(spans, logits)
        first_tokens = logits[torch.tensor([at for _, _, at, _ in spans], device=logits.device)].argmax(dim=-1)
        return [_Row(member, index, len(self.turns[member].prompt), [token])
                for (member, index, _, _), token in zip(spans, first_tokens.tolist(), strict=True)]

    def _score_gold(self, spans: Sequence[tuple[int, int, int, int]], logits: torch.Tensor) -> None:
        scored = [(member, at, count) for member, _, at, count in spans if self.turns[member].gold]
        if self.on_gold is None or not scored:
            return
        at = torch.tensor([first + step for _, first, count in scored for step in range(count)])
        gold = [token for member, _, _ in scored for token in self.turns[member].gold]
        self.on_gold(GoldLogits(
            turns=tuple(member for member, _, _ in scored), counts=tuple(count for _, _, count in scored),
            token_ids=torch.tensor(gold, device=logits.device), logits=logits[at.to(logits.device)]))

    def _decode(self, store: PrefixStore, rows: list[_Row]) -> None:
        """Decode in lockstep until every row is complete; complete rows leave at once."""
        live = self._settle(rows)[1]
        if not live:
            return
        device = self.model.device
        store.begin_decode([row.dialogue for row in live], [row.length for row in live], device)
        while live:
            store.reserve_token()
            ids = torch.tensor([[row.tokens[-1] for row in live]], device=device)
            positions = torch.tensor([[row.length + len(row.tokens) - 1 for row in live]], device=device)
            highest, tokens = self._forward(ids, positions).max(dim=-1)  # [R]
            self.decode_steps += 1
            self._check_finite(highest, [self.turns[row.turn].key for row in live])
            for row, token in zip(live, tokens.tolist(), strict=True):
                row.tokens.append(token)
            kept, remaining = self._settle(live)
            if remaining and len(remaining) < len(live):
                numbers = store.keep_rows(
                    kept, [row.dialogue for row in remaining], [row.length for row in remaining], device)
                for row, number in zip(remaining, numbers, strict=True):
                    row.dialogue = number
            live = remaining

    def _settle(self, rows: Sequence[_Row]) -> tuple[list[int], list[_Row]]:
        """Hand in the answers that are complete; the others, with their indices."""
        kept, remaining = [], []
        for index, row in enumerate(rows):
            if self.checker.is_complete(row.tokens):
                self.answers[row.turn] = row.tokens
            else:
                kept.append(index)
                remaining.append(row)
        return kept, remaining

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor | int = 0) -> torch.Tensor:
        """ids and positions [1, N] -> float32 logits [K, V] at the `kept` positions (0: all)."""
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=kept)
        logits: torch.Tensor = out.logits[0]
        return logits.float()

    def _check_finite(self, highest: torch.Tensor, keys: Sequence[str]) -> None:
        bad = torch.nonzero(~torch.isfinite(highest))
        if len(bad):
            first = int(bad[0, 0])
            raise TrialError(f"every logit must be finite, got {highest[first].item()} for turn {keys[first]!r}: "
                             "the checkpoint is broken or its dtype overflows, try bf16")
