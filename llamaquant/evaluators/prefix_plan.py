"""Which token sequences share a prefix, and which of them fit into one batch. Pure Python: no torch.

All turns of a dialogue repeat the story and the gold history, so the longest sequence of a dialogue (its carrier)
holds the prefix of every other turn. Only carriers are run through the model; the other turns read its KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamaquant.errors import BackendError, DataError


@dataclass(frozen=True)
class Turn:
    """One question to answer.

    Attributes:
        key: name of the turn in error messages and result files, unique in a run (`story_id:turn_id`).
        prompt: token ids of everything before the answer, as lm-eval encodes them (BOS, truncation).
        gold: token ids of the reference answer after the prompt; empty where it is not to be scored.
    """

    key: str
    prompt: tuple[int, ...]
    gold: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.gold


@dataclass(frozen=True)
class PrefixGroup:
    """A carrier sequence and the turns (indices into the run's list) whose sequences are prefixes of it."""

    tokens: tuple[int, ...]
    members: tuple[int, ...]


@dataclass(frozen=True)
class MemoryModel:
    """Bytes that a batch takes, so that batches can be cut to a budget.

    Attributes:
        kv_bytes_per_token: keys and values of one token over all layers.
        score_bytes_per_pair: attention scores of one layer, all heads, per (decoding row, prefix token).
        bytes_per_row: logits of one decoding row.
        suffix_tokens: tokens that a row may generate (the worst case is what is reserved).
    """

    kv_bytes_per_token: int
    score_bytes_per_pair: int
    bytes_per_row: int
    suffix_tokens: int

    def batch_bytes(self, groups: int, longest: int, rows: int, most_rows: int) -> int:
        """Prefix cache padded to the longest carrier, suffixes and logits of all rows, scores of the padded table."""
        prefix = groups * longest * self.kv_bytes_per_token
        suffix = rows * (self.suffix_tokens * self.kv_bytes_per_token + self.bytes_per_row)
        scores = groups * most_rows * longest * self.score_bytes_per_pair
        return prefix + suffix + scores


def check_turns(turns: Sequence[Turn]) -> None:
    """DataError that names the first turn without a prompt, or the first key that comes twice."""
    seen: set[str] = set()
    for turn in turns:
        if not turn.prompt:
            raise DataError(f"a turn must have a prompt, got none for {turn.key!r}: check the story text")
        if turn.key in seen:
            raise DataError(f"turn keys must be unique, got {turn.key!r} twice: remove the repeated story or turn")
        seen.add(turn.key)


def plan_groups(turns: Sequence[Turn]) -> list[PrefixGroup]:
    """Group turns under the fewest carriers; a turn that is a prefix of no other one carries itself.

    Walks the sequences in descending lexicographic order: a sequence that starts another one is then a prefix of
    the carrier in hand, because everything sorted between the two starts with it too.
    """
    order = sorted(range(len(turns)), key=lambda index: turns[index].tokens, reverse=True)
    groups: list[PrefixGroup] = []
    carrier: tuple[int, ...] = ()
    members: list[int] = []
    for index in order:
        tokens = turns[index].tokens
        if members and carrier[: len(tokens)] == tokens:
            members.append(index)
            continue
        if members:
            groups.append(PrefixGroup(carrier, tuple(sorted(members))))
        carrier, members = tokens, [index]
    if members:
        groups.append(PrefixGroup(carrier, tuple(sorted(members))))
    return sorted(groups, key=lambda group: group.members)


def plan_batches(groups: Sequence[PrefixGroup], memory: MemoryModel, budget_bytes: int) -> list[list[PrefixGroup]]:
    """Batches of groups of similar length, longest first, each within the budget.

    A group that fits no batch on its own is cut into several groups of fewer turns (its prefix is then run again for
    each). BackendError where one turn alone is over the budget.
    """
    batches: list[list[PrefixGroup]] = []
    current: list[PrefixGroup] = []
    rows = most = 0
    for group in sorted(groups, key=lambda group: (-len(group.tokens), group.members)):
        for piece in _cut_to_budget(group, memory, budget_bytes):
            count = len(piece.members)
            longest = len(current[0].tokens) if current else len(piece.tokens)
            if current and memory.batch_bytes(
                    len(current) + 1, longest, rows + count, max(most, count)) > budget_bytes:
                batches.append(current)
                current, rows, most = [], 0, 0
            current.append(piece)
            rows, most = rows + count, max(most, count)
    return [*batches, current] if current else batches


def _cut_to_budget(group: PrefixGroup, memory: MemoryModel, budget_bytes: int) -> list[PrefixGroup]:
    length = len(group.tokens)
    rows = len(group.members)
    while rows and memory.batch_bytes(1, length, rows, rows) > budget_bytes:
        rows -= 1
    if not rows:
        need = memory.batch_bytes(1, length, 1, 1) / 2**20
        raise BackendError(f"one turn of {length} tokens must fit the evaluation's memory budget, "
                           f"got {budget_bytes / 2**20:.0f} MiB for {need:.0f} MiB: raise the budget or free memory")
    starts = range(0, len(group.members), rows)
    return [PrefixGroup(group.tokens, group.members[start:start + rows]) for start in starts]
