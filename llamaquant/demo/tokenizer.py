"""The demo's tokenizer: byte-level BPE trained on its own stories, saved for plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from llamaquant.coqa.prompt import full_dialogue
from llamaquant.demo.world import generate_stories

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT_TOKENS = 2048


def train_tokenizer(vocab_size: int = 2048, stories: int = 4000, seed: int = 0) -> Tokenizer:
    """Byte-level BPE (Sennrich et al., 2016, on bytes as in GPT-2) with `vocab_size` entries, 3 of them special.

    The beginning-of-sequence token is added to every text, as Llama tokenizers do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((full_dialogue(s) for s in generate_stories("train", stories, seed)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; AutoTokenizer reads them without remote code."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT_TOKENS,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def newline_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of all tokens with a line break: an answer ends before the first of them."""
    return [i for i in range(tokenizer.get_vocab_size()) if "\n" in tokenizer.decode([i])]
