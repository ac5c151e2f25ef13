"""Official CoQA JSON in, checked; lm-eval's layout out, and back."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaquant.coqa.data import check_stories, from_hub_layout, read_stories, stories_sha256, subset, to_hub_layout
from llamaquant.errors import DataError
from tests.conftest import make_story, shared_folder


def test_plain_and_gzipped_files_are_equal(coqa_file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "other.bin"
    packed.write_bytes(gzip.compress(coqa_file.read_bytes()))
    assert read_stories(packed) == read_stories(coqa_file) and len(read_stories(packed)) == 6


@given(count=st.integers(1, 30), small=st.integers(1, 30), large=st.integers(1, 30), seed=st.integers(0, 5))
def test_subsets_are_seeded_and_nested(count: int, small: int, large: int, seed: int) -> None:
    stories = [make_story(f"s{i}") for i in range(count)]
    small, large = sorted((min(small, count), min(large, count)))
    ids = [story["id"] for story in subset(stories, large, seed)]
    assert len(set(ids)) == large and ids[:small] == [story["id"] for story in subset(stories, small, seed)]
    assert {story["id"] for story in subset(stories[::-1], large, seed)} == set(ids), "the order of the file does not matter"
    assert len(subset(stories, None, seed)) == count
    with pytest.raises(DataError, match=f"{count} stories, got {count + 1}"):
        subset(stories, count + 1, seed)


def test_another_seed_is_another_subset() -> None:
    stories = [make_story(f"s{i}") for i in range(100)]
    first, second = ({s["id"] for s in subset(stories, 20, seed)} for seed in (0, 1))
    assert first != second


def test_hub_layout_round_trip() -> None:
    story = make_story(turns=4)
    assert from_hub_layout(to_hub_layout(story)) == story
    assert to_hub_layout(story)["questions"]["input_text"] == [f"who is {i}" for i in (1, 2, 3, 4)]


def test_the_digest_sees_words_and_order() -> None:
    one, two = make_story("a"), make_story("b")
    assert stories_sha256([one, two]) != stories_sha256([two, one]) == stories_sha256([json.loads(json.dumps(two)), one])


def test_stories_without_additional_answers_pass() -> None:
    story = make_story()
    del story["additional_answers"]
    check_stories([story])


def test_real_coqa_is_accepted() -> None:
    folder = shared_folder()
    if folder is None:
        pytest.skip("real CoQA stories are not on this machine (set LLAMAQUANT_SHARED)")
    stories = read_stories(folder / "data" / "coqa-dev-open.json.gz")
    assert len(stories) == 300 and sum(len(s["questions"]) for s in stories) == 4905
