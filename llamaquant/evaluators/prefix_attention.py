"""Attention of many decoding rows to prefixes that are kept once per dialogue.

A transformers attention function (`ALL_ATTENTION_FUNCTIONS`), so any model whose layers call the attention interface
runs it unchanged, whatever its linear layers are. Two phases:

- prefill: carriers lie one after the other in a single packed sequence [1, N]; each attends causally to itself, and
  its keys and values are stored once.
- decode: one new token per row. A row attends to the first `length` tokens of its dialogue's prefix and to the
  tokens it has generated itself (its suffix). Both parts are normalised apart and merged by their log-sum-exp, which
  is exact: softmax over a union of key sets is the weighted mean of the parts' softmaxes, with weights
  exp(lse_part - lse_union) (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Juravsky et al.
  2024, "Hydragen", use the same split for shared prefixes).

The queries of all rows of a dialogue, and of all query heads that share a key head, form one matrix: one matrix
product per dialogue and key head reads the prefix once, however many turns ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional

from llamaquant.errors import BackendError

NAME = "llamaquant_shared_prefix"
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Attention features that the two-part attention does not have; a model that uses one is refused."""


class PrefixStore:
    """Keys and values of one batch: prefixes once per dialogue, suffixes once per row.

    Letters in shape comments: D dialogues, P longest prefix, S slots per dialogue, R live rows, T suffix capacity,
    Hq/Hk query/key heads, G = Hq / Hk, E head size.
    """

    def __init__(self, dialogues: int, longest: int) -> None:
        self.dialogues = dialogues
        self.longest = longest
        self._prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> K, V  [D, Hk, P, E]
        self._suffix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> K, V  [R, Hk, T, E]
        self._capacity = 0
        self.suffix_length = 0
        self.prefilling = True
        self._segments: list[tuple[int, int]] = []
        self._write_at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._slots = 0
        self._row_slot: torch.Tensor | None = None  # [R] position of a row in the flat table [D * S]
        self._hidden: torch.Tensor | None = None  # [D, 1, S, 1, P] True where a slot must not look

    # ------------------------------------------------------------------ prefill

    def begin_prefill(self, segments: Sequence[tuple[int, int]], dialogues: Sequence[int], device: Any) -> None:
        """Declare the packed sequence of the next forward: (start, length) of each carrier, and its dialogue."""
        self.prefilling = True
        self._segments = list(segments)
        owner = [dialogue for dialogue, (_, length) in zip(dialogues, segments, strict=True) for _ in range(length)]
        position = [index for _, length in segments for index in range(length)]
        self._write_at = (torch.tensor(owner, device=device), torch.tensor(position, device=device))

    def attend_prefill(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                       scale: float) -> torch.Tensor:
        """query [1, Hq, N, E], key and value [1, Hk, N, E] -> [1, N, Hq, E]; keys and values are stored."""
        self._store_prefix(layer, key, value)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key = key.repeat_interleave(groups, dim=1)
            value = value.repeat_interleave(groups, dim=1)
        out = torch.empty_like(query)
        for start, length in self._segments:
            part = slice(start, start + length)
            out[:, :, part] = functional.scaled_dot_product_attention(
                query[:, :, part], key[:, :, part], value[:, :, part], scale=scale, is_causal=length > 1)
        return out.transpose(1, 2)

    def _store_prefix(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer not in self._prefix:
            shape = (self.dialogues, key.shape[1], self.longest)
            self._prefix[layer] = (key.new_zeros(*shape, key.shape[-1]), value.new_zeros(*shape, value.shape[-1]))
        assert self._write_at is not None
        owner, position = (index.to(key.device) for index in self._write_at)
        for store, new in zip(self._prefix[layer], (key, value), strict=True):
            store.transpose(1, 2)[owner, position] = new[0].transpose(0, 1)  # [N, Hk, E]

    # ------------------------------------------------------------------ decode

    def begin_decode(self, dialogues: Sequence[int], lengths: Sequence[int], device: Any) -> None:
        """Declare the live rows: the dialogue of each (ascending) and how many prefix tokens it sees."""
        self.prefilling = False
        self._capacity = self.suffix_length = 0
        self._place(dialogues, lengths, device)

    def keep_rows(self, kept: Sequence[int], dialogues: Sequence[int], lengths: Sequence[int],
                  device: Any) -> list[int]:
        """Drop all live rows but `kept` (their indices); `dialogues` and `lengths` describe the kept ones.

        Returns the dialogue number of each kept row: it changes when dialogues without rows leave memory.
        """
        index = torch.tensor(kept, device=device)
        for layer, (key, value) in self._suffix.items():
            rows = index.to(key.device)
            self._suffix[layer] = (key[rows], value[rows])
        alive = sorted(set(dialogues))
        numbers = list(dialogues)
        if 2 * len(alive) <= self.dialogues:  # copying the prefix is worth it only when half of it goes
            self._drop_dialogues(alive, max(lengths))
            renumbered = {old: new for new, old in enumerate(alive)}
            numbers = [renumbered[dialogue] for dialogue in dialogues]
        self._place(numbers, lengths, device)
        return numbers

    def reserve_token(self) -> None:
        """Make room for one more suffix token per row; capacity doubles, so copies stay rare."""
        self.suffix_length += 1
        if self.suffix_length <= self._capacity:
            return
        self._capacity = max(16, 2 * self._capacity)
        for layer, pair in self._suffix.items():
            grown = []
            for old in pair:
                new = old.new_empty(*old.shape[:2], self._capacity, old.shape[-1])
                new[:, :, : old.shape[2]] = old
                grown.append(new)
            self._suffix[layer] = (grown[0], grown[1])

    def attend_decode(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                      scale: float) -> torch.Tensor:
        """query [1, Hq, R, E], key and value [1, Hk, R, E], one token per row -> [1, R, Hq, E]."""
        kv_heads, rows, size = key.shape[1:]
        query = query[0].transpose(0, 1).reshape(rows, kv_heads, -1, size)  # [R, Hk, G, E]
        suffix_out, suffix_lse = self._attend_suffix(layer, query, key, value, scale)
        prefix_out, prefix_lse = self._attend_prefix(layer, query, scale)
        weight = torch.sigmoid(prefix_lse - suffix_lse).unsqueeze(-1)  # exp(lse_prefix - lse_union)
        out = torch.lerp(suffix_out, prefix_out, weight).to(value.dtype)  # [R, Hk, G, E]
        return out.reshape(1, rows, -1, value.shape[-1])

    def _attend_suffix(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                       scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._suffix:
            shape = (key.shape[2], key.shape[1], self._capacity)
            self._suffix[layer] = (key.new_empty(*shape, key.shape[-1]), value.new_empty(*shape, value.shape[-1]))
        keys, values = self._suffix[layer]
        keys[:, :, self.suffix_length - 1] = key[0].transpose(0, 1)
        values[:, :, self.suffix_length - 1] = value[0].transpose(0, 1)
        keys, values = keys[:, :, : self.suffix_length], values[:, :, : self.suffix_length]
        return _weighted_mean(_scores(query, keys, scale), values)

    def _attend_prefix(self, layer: int, query: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._prefix[layer]
        rows, kv_heads, groups, size = query.shape
        assert self._row_slot is not None and self._hidden is not None
        slot = self._row_slot.to(query.device)
        table = query.new_zeros(self.dialogues * self._slots, kv_heads, groups, size)
        table[slot] = query
        table = table.view(self.dialogues, self._slots, kv_heads, groups, size).permute(0, 2, 1, 3, 4)
        scores = _scores(table.reshape(self.dialogues, kv_heads, self._slots * groups, size), keys, scale)
        scores.view(self.dialogues, kv_heads, self._slots, groups, -1).masked_fill_(
            self._hidden.to(scores.device), float("-inf"))
        out, lse = _weighted_mean(scores, values)  # [D, Hk, S * G, E], [D, Hk, S * G]
        out = out.view(self.dialogues, kv_heads, self._slots, groups, -1).permute(0, 2, 1, 3, 4)
        lse = lse.view(self.dialogues, kv_heads, self._slots, groups).permute(0, 2, 1, 3)
        return (out.reshape(-1, kv_heads, groups, out.shape[-1])[slot], lse.reshape(-1, kv_heads, groups)[slot])

    # ------------------------------------------------------------------ rows

    def _place(self, dialogues: Sequence[int], lengths: Sequence[int], device: Any) -> None:
        used = [0] * self.dialogues
        places = []
        for dialogue in dialogues:
            places.append((dialogue, used[dialogue]))
            used[dialogue] += 1
        self._slots = max(used)
        slots = [dialogue * self._slots + slot for dialogue, slot in places]
        # An empty slot may look at everything: its result is never read, and no row of scores is all -inf.
        self._row_slot = torch.tensor(slots, device=device)
        visible = torch.full((self.dialogues * self._slots,), self.longest, device=device)
        visible[self._row_slot] = torch.tensor(lengths, device=device)
        hidden = torch.arange(self.longest, device=device)[None] >= visible[:, None]
        self._hidden = hidden.view(self.dialogues, 1, self._slots, 1, self.longest)

    def _drop_dialogues(self, alive: Sequence[int], longest: int) -> None:
        self.longest = longest
        for layer, (key, value) in self._prefix.items():
            index = torch.tensor(alive, device=key.device)
            self._prefix[layer] = (key[index, :, :longest], value[index, :, :longest])
        self.dialogues = len(alive)


def _scores(query: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """query [B, Hk, M, E], keys [B, Hk, N, E] -> float32 scores [B, Hk, M, N], times `scale`."""
    batch, heads, rows, size = query.shape
    left, right = query.reshape(-1, rows, size), keys.reshape(-1, keys.shape[2], size).transpose(1, 2)
    return _product(left, right).mul_(scale).view(batch, heads, rows, -1)


def _weighted_mean(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax-weighted values, float32, and the log-sum-exp of the scores; `scores` is overwritten."""
    highest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(highest).exp_()  # [B, Hk, M, N]
    total = weights.sum(dim=-1, keepdim=True)
    batch, heads, rows, count = weights.shape
    mean = _product(weights.view(-1, rows, count).to(values.dtype), values.reshape(-1, count, values.shape[-1]))
    return mean.view(batch, heads, rows, -1) / total, (highest + total.log()).squeeze(-1)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Batched matrix product in float32; half-precision inputs are accumulated in float32, as fused kernels do."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


_active: ContextVar[PrefixStore | None] = ContextVar("llamaquant_prefix_store", default=None)


def attention_forward(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                      attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
                      **kwargs: Any) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, Hq, N, E], key/value [1, Hk, N, E] -> [1, N, Hq, E]."""
    store = _active.get()
    if store is None:
        raise BackendError("shared-prefix attention must run inside generate(), got a call from outside: "
                           "use model.set_attn_implementation('sdpa') for other forwards")
    used = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if used:
        raise BackendError(f"shared-prefix attention needs plain causal attention, got {used[0]}="
                           f"{type(kwargs[used[0]]).__name__}: evaluate this model with lm-eval's own backend")
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    attend = store.attend_prefill if store.prefilling else store.attend_decode
    layer = module.layer_idx
    assert isinstance(layer, int)
    return attend(layer, query, key, value, scale).contiguous(), None


@contextmanager
def shared_prefix_attention(model: Any) -> Iterator[None]:
    """Switch a transformers model to this attention; its own implementation comes back afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention_forward)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise BackendError(f"the model must use transformers' attention interface, got {type(model).__name__}: "
                           "evaluate it with lm-eval's own backend")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def active_store(store: PrefixStore) -> Iterator[None]:
    """The store that attention calls of this thread read and write."""
    token = _active.set(store)
    try:
        yield
    finally:
        _active.reset(token)
