"""Tokenizer and training data: round trips, masks on exactly the answers, worker independence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.coqa.prompt import full_dialogue, prompt_for_turn
from llamaquant.demo import MODEL_PATH, demo_stories
from llamaquant.demo.corpus import Corpus, answer_ranges, batches, build_corpus, encode_dialogue
from llamaquant.demo.tokenizer import BOS, newline_ids, save_tokenizer, train_tokenizer
from llamaquant.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_vocabulary_and_special_tokens(tokenizer):
    assert tokenizer.get_vocab_size() == 2048
    assert tokenizer.encode("Hello").ids[0] == tokenizer.token_to_id(BOS)
    assert {tokenizer.decode([i]).strip("\n") for i in newline_ids(tokenizer)} == {""}


def test_transformers_loads_what_is_saved(tmp_path):
    from transformers import AutoTokenizer

    trained = train_tokenizer(vocab_size=600, stories=50)
    save_tokenizer(trained, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = full_dialogue(demo_stories("evaluation", 1)[0])
    assert loaded(text)["input_ids"] == trained.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")
    assert loaded.model_max_length == 2048


def test_mask_covers_the_answers_and_the_way_to_the_next_question(tokenizer):
    for story in demo_stories("train", 30):
        ids, mask = encode_dialogue(tokenizer, story)
        masked = tokenizer.decode([token for token, inside in zip(ids, mask, strict=True) if inside])
        assert masked == "".join(f" {answer['input_text']}\n\nQ:" for answer in story["answers"])
        text = full_dialogue(story) + "Q:"
        for turn, (begin, _) in enumerate(answer_ranges(story)):
            assert text[:begin] == prompt_for_turn(story, turn)
            prompt_ids = tokenizer.encode(text[:begin]).ids
            assert ids[: len(prompt_ids)] == prompt_ids


def test_corpus_does_not_depend_on_workers(tokenizer, tmp_path):
    alone, together = build_corpus(tokenizer, 1100, workers=1), build_corpus(tokenizer, 1100, workers=2)
    for name in ("tokens", "is_answer", "starts"):
        assert np.array_equal(getattr(alone, name), getattr(together, name))
    alone.save(tmp_path)
    assert np.array_equal(Corpus.load(tmp_path).tokens, alone.tokens)
    first = alone.tokens[alone.starts[7] : alone.starts[8]].tolist()
    assert first == encode_dialogue(tokenizer, demo_stories("train", 8)[7])[0]


def test_batches_hold_similar_lengths_and_repeat_by_seed():
    lengths = np.random.default_rng(0).integers(100, 400, size=500)
    streams = [batches(lengths, 16, (256, 384), seed) for seed in (3, 3, 4)]
    drawn = [[next(stream) for _ in range(40)] for stream in streams]
    for pad, members in drawn[0]:
        assert len(members) == 16 and lengths[members].max() <= pad
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(drawn[0], drawn[2], strict=True))
    with pytest.raises(DataError, match="at least 16"):
        next(batches(lengths[:5], 16, (384,), 0))


def test_arrays_that_do_not_fit():
    with pytest.raises(DataError, match="agree in length"):
        Corpus(np.zeros(3, np.uint16), np.zeros(2, np.bool_), np.asarray([0, 3]))
