"""Training data of the demo model: stories as flat token arrays with a mask on the answers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llamaquant.coqa.prompt import full_dialogue
from llamaquant.demo.world import generate_stories
from llamaquant.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NEXT_QUESTION = "Q:"
"""Ends every training dialogue, so that the model learns to run into the stop rule after the last answer too."""
CHUNK_STORIES = 1000


@dataclass(frozen=True)
class Corpus:
    """Dialogues one after the other: `tokens` [N] uint16, `is_answer` [N] bool, `starts` [stories + 1] int64."""

    tokens: NDArray[np.uint16]
    is_answer: NDArray[np.bool_]
    starts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.is_answer) or int(self.starts[-1]) != len(self.tokens):
            raise DataError(
                f"corpus arrays must agree in length, got {len(self.tokens)} tokens, {len(self.is_answer)} mask entries,"
                f" end {int(self.starts[-1])}: build the corpus again"
            )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per dialogue, [stories] int64."""
        return np.diff(self.starts)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokens", "is_answer", "starts"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        arrays = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("tokens", "is_answer", "starts"))
        return cls(*arrays)


def build_corpus(tokenizer: Tokenizer, stories: int, seed: int = 0, workers: int = 1) -> Corpus:
    """Generate and tokenise `stories` training stories in `workers` processes; the result does not depend on them."""
    jobs = [(tokenizer.to_str(), seed, start, min(CHUNK_STORIES, stories - start)) for start in range(0, stories, CHUNK_STORIES)]
    if workers <= 1:
        parts = [_chunk(job) for job in jobs]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.map(_chunk, jobs, chunksize=1)
    tokens, masks, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Corpus(tokens, masks, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


def answer_ranges(story: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Character ranges of the full dialogue that the model is trained to write: answer up to the next `Q:`."""
    ranges, position = [], len(story["story"]) + 2
    for question, answer in zip(story["questions"], story["answers"], strict=True):
        position += len(f"Q: {question['input_text']}\n\nA:")
        end = position + len(f" {answer['input_text']}\n\n")
        ranges.append((position, end + len(NEXT_QUESTION)))
        position = end
    return ranges


def encode_dialogue(tokenizer: Tokenizer, story: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
    """Token ids (with the beginning-of-sequence token) and whether each is part of an answer."""
    encoding = tokenizer.encode(full_dialogue(story) + NEXT_QUESTION)
    ranges = iter([*answer_ranges(story), (1 << 30, 1 << 30)])
    begin, end = next(ranges)
    mask = []
    for start, stop in encoding.offsets:
        while start >= end:
            begin, end = next(ranges)
        mask.append(begin <= start < end and stop > start)
    return encoding.ids, mask


def batches(lengths: NDArray[np.int64], batch_size: int, pads: Sequence[int], seed: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Endless (padded length, story indices [batch_size]) of similar lengths; dialogues over the last pad are left out.

    Every pass over the corpus is shuffled anew; incomplete batches are dropped.
    """
    rng = np.random.default_rng(seed)
    bins = np.searchsorted(np.asarray(pads), lengths)
    groups = [(pad, np.flatnonzero(bins == i)) for i, pad in enumerate(pads)]
    if all(len(members) < batch_size for _, members in groups):
        raise DataError(f"a corpus needs at least {batch_size} dialogues of similar length, got {len(lengths)}: use more stories")
    while True:
        epoch = []
        for pad, members in groups:
            order = rng.permutation(members)
            epoch += [(pad, order[i : i + batch_size]) for i in range(0, len(order) - batch_size + 1, batch_size)]
        for position in rng.permutation(len(epoch)):
            yield epoch[position]


def _chunk(job: tuple[str, int, int, int]) -> tuple[NDArray[np.uint16], NDArray[np.bool_], NDArray[np.int64]]:
    from tokenizers import Tokenizer

    tokenizer_json, seed, start, count = job
    tokenizer = Tokenizer.from_str(tokenizer_json)
    encoded = [encode_dialogue(tokenizer, story) for story in generate_stories("train", count, seed, start)]
    tokens = np.concatenate([np.asarray(ids, np.uint16) for ids, _ in encoded])
    masks = np.concatenate([np.asarray(mask, np.bool_) for _, mask in encoded])
    return tokens, masks, np.asarray([len(ids) for ids, _ in encoded], np.int64)
