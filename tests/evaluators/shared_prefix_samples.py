"""Small models, a tokenizer and stories for the shared-prefix tests, and where the real ones lie."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llamaquant.coqa.data import read_stories
from llamaquant.coqa.prompt import full_dialogue

ROOT = Path(__file__).resolve().parents[2]


def story(identity: str, text: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """A story in the official layout; every turn has two equal references."""
    answers = [{"input_text": answer, "turn_id": number} for number, (_, answer) in enumerate(pairs, 1)]
    return {"id": identity, "source": "test", "story": text,
            "questions": [{"input_text": question, "turn_id": number} for number, (question, _) in enumerate(pairs, 1)],
            "answers": answers, "additional_answers": {"0": [dict(answer) for answer in answers]}}


def sample_stories() -> list[dict[str, Any]]:
    """Five stories with 1 to 5 turns; answers with full stops, quotes, digits and letters outside ASCII."""
    return [
        story("cat", "The cat sat on the mat. It was red, and the dog saw it.",
              [("Who sat?", "The cat."), ("Where?", "on the mat"), ("What colour was it?", "red."),
               ("Who saw it?", "the dog"), ("Was it big?", "unknown")]),
        story("train", "A train left Köln at 9:30. It reached Bonn at 10:05 with 120 people.",
              [("When did it leave?", "9:30"), ("From where?", "Köln"), ("How many people?", "120.")]),
        story("letter", "Ann wrote a letter to Ben.\nBen did not answer.",
              [("Who wrote?", "Ann"), ("To whom?", "Ben.")]),
        story("one", "It rained all day in the green valley.", [("What happened?", '"It rained all day"')]),
        story("river", "The river is long. Boats go down to the sea. The old man fishes there each day.",
              [("Is the river long?", "Yes."), ("What goes down?", "Boats"), ("To where?", "the sea"),
               ("Who fishes?", "the old man")]),
    ]


def make_tokenizer(add_bos: bool = False, merge_newlines: bool = False) -> Any:
    """A byte-level BPE trained on the samples. `merge_newlines`: `.` and line breaks form one token, as in Llama 3."""
    bare = Tokenizer(models.BPE(unk_token=None))
    if merge_newlines:
        from tokenizers import Regex

        pattern = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        bare.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bare.train_from_iterator([full_dialogue(sample) for sample in sample_stories()], trainer)
    if add_bos:
        bare.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bare.token_to_id("<s>"))])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def make_model(tokenizer: Any, *, heads: int = 4, kv_heads: int = 2, seed: int = 0,
               dtype: torch.dtype = torch.float32, context: int = 512) -> Any:
    """A random Llama, loud enough that its greedy answers vary and come to their end."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.3)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def write_stories(folder: Path, stories: list[dict[str, Any]]) -> Path:
    path = folder / "stories.json"
    path.write_text(json.dumps({"version": "1.0", "data": stories}), "utf-8")
    return path


@cache
def real_stories() -> list[dict[str, Any]]:
    """CoQA stories of the shared data folder; skips the test where it is absent."""
    folder = Path(os.environ.get("LLAMAQUANT_SHARED", ROOT.parent / "shared"))
    path = folder / "data" / "coqa-dev-open.json.gz"
    if not path.exists():
        pytest.skip(f"needs real CoQA stories, got no {path.name}: set LLAMAQUANT_SHARED to the folder with data/")
    return read_stories(path)


@cache
def real_model() -> tuple[Any, Any]:
    """SmolLM2-135M in float32 and its tokenizer; skips the test where it is absent."""
    folder = Path(os.environ.get("LLAMAQUANT_SMOLLM2", ROOT / ".smollm2"))
    if not (folder / "model.safetensors").exists():
        pytest.skip("needs the SmolLM2-135M checkpoint, got no folder: set LLAMAQUANT_SMOLLM2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)
