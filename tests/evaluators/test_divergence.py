"""Divergence from a baseline against exact KL divergences, hand-made distributions and transformers' own logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.coqa.prompt import golds_for_turn
from llamaquant.errors import DataError, TrialError
from llamaquant.evaluators.divergence import (
    Baseline,
    BaselineRecorder,
    DivergenceMeter,
    compare_answers,
    kl_on_partition,
    tail_logprobs,
)
from llamaquant.evaluators.generate import GoldLogits, generate
from llamaquant.evaluators.prefix_plan import Turn
from llamaquant.evaluators.prefix_stop import StopRule
from llamaquant.evaluators.prefix_tokens import max_prompt_tokens, turns_of_stories
from tests.evaluators.shared_prefix_samples import make_model, make_tokenizer, real_model, real_stories, sample_stories, story

TOKENIZER = make_tokenizer()
RULE = StopRule(("\n",), True, 6)


def turns_and_golds() -> tuple[list[Turn], list[list[str]]]:
    stories = sample_stories()
    golds = [golds_for_turn(one, index) for one in stories for index in range(len(one["questions"]))]
    return turns_of_stories(TOKENIZER, stories, 10**6), golds


def record(model: Any, turns: list[Turn], top: int = 32, tokenizer: Any = TOKENIZER, rule: StopRule = RULE) -> Baseline:
    recorder = BaselineRecorder(turns, top)
    return recorder.finish(generate(model, tokenizer, turns, rule, on_gold=recorder).texts, "abc")


def exact_logprobs(model: Any, turn: Turn) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([turn.tokens])).logits[0].double()
    return torch.log_softmax(logits[len(turn.prompt) - 1: len(turn.tokens) - 1], dim=-1)


def exact_kl(model: Any, other: Any, turn: Turn) -> float:
    p, q = exact_logprobs(model, turn), exact_logprobs(other, turn)
    return float((p.exp() * (p - q)).sum())


def noisy(model: Any, scale: float) -> Any:
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0)
    return model


def test_kl_is_a_lower_bound_of_the_exact_one_and_equal_with_the_whole_vocabulary() -> None:
    turns, golds = turns_and_golds()
    model, other = make_model(TOKENIZER), noisy(make_model(TOKENIZER), 0.05)
    exact = np.array([exact_kl(model, other, turn) for turn in turns])
    assert exact.min() > 1e-4
    found = []
    for top in (4, 32, 10**6):
        meter = DivergenceMeter(turns, record(model, turns, top))
        answers = generate(other, TOKENIZER, turns, RULE, on_gold=meter).texts
        found.append(meter.finish(answers, golds).kl_top256)
    assert (found[0] <= found[1] + 1e-5).all() and (found[1] <= found[2] + 1e-5).all()
    assert (found[1] < exact).any()
    np.testing.assert_allclose(found[2], exact, rtol=1e-3, atol=1e-4)


def test_the_same_model_diverges_by_nothing_and_gold_likelihoods_are_transformers_own() -> None:
    turns, golds = turns_and_golds()
    model = make_model(TOKENIZER)
    baseline = record(model, turns)
    meter = DivergenceMeter(turns, baseline)
    result = meter.finish(generate(model, TOKENIZER, turns, RULE, on_gold=meter).texts, golds)
    assert result.kl_top256.max() < 1e-5
    assert result.agrees.all() and not result.flipped.any()
    for turn, have in zip(turns, result.gold_logprob, strict=True):
        want = exact_logprobs(model, turn).gather(1, torch.tensor(turn.gold)[:, None]).sum()
        assert have == pytest.approx(float(want), rel=1e-4)
    metrics = result.to_metrics()
    assert metrics["quality/gold_nll_nats_per_token"] == pytest.approx(
        -result.gold_logprob.sum() / sum(len(turn.gold) for turn in turns))
    assert (metrics["quality/flip_rate"], metrics["quality/answer_agreement"]) == (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 2**20), st.floats(0.1, 30))
def test_partition_kl_bounds_the_full_kl_for_any_distributions(size: int, top: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.log_softmax(scale * torch.randn(3, size, generator=generator).double(), dim=-1) for _ in range(2))
    values, ids = p.topk(min(top, size), dim=-1)
    bound = kl_on_partition(values, tail_logprobs(p, ids), q, ids)
    full = (p.exp() * (p - q)).sum(dim=-1)
    assert (bound >= 0).all()
    assert (bound <= full + 1e-9 * (1 + full)).all()
    if top >= size:
        torch.testing.assert_close(bound, full.clamp_min(0), rtol=1e-9, atol=1e-9)


def test_partition_kl_of_a_known_case() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    ids = torch.tensor([[0]])
    # {0: .5, rest: .5} against {0: .25, rest: .75}
    want = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(kl_on_partition(p[:, :1], tail_logprobs(p, ids), q, ids)) == pytest.approx(want)


# --------------------------------------------------------------------------- the cache


def test_a_saved_baseline_comes_back_whole_and_compact(tmp_path: Path) -> None:
    turns, _ = turns_and_golds()
    baseline = record(make_model(TOKENIZER), turns, top=8)
    path = baseline.save(tmp_path)
    again = Baseline.load(tmp_path, "abc")
    assert again is not None
    assert (again.keys, again.answers) == (baseline.keys, baseline.answers)
    for name in ("hashes", "offsets", "gold_logprobs", "top_ids", "top_logprobs", "tail_logprobs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(baseline, name))
    assert again.top_ids.dtype == np.uint16
    tokens = sum(len(turn.gold) for turn in turns)
    assert path.stat().st_size < tokens * (8 * 6 + 8) + 4096
    assert [one.name for one in tmp_path.iterdir()] == [path.name]  # no partial file stays


def test_a_missing_baseline_is_none_and_a_wrong_or_torn_one_is_an_error(tmp_path: Path) -> None:
    assert Baseline.load(tmp_path, "abc") is None
    turns, _ = turns_and_golds()
    path = record(make_model(TOKENIZER), turns, top=4).save(tmp_path)
    whole = path.read_bytes()
    path.rename(tmp_path / "baseline-xyz.safetensors")
    with pytest.raises(DataError, match="own fingerprint, got 'abc'"):
        Baseline.load(tmp_path, "xyz")
    path.write_bytes(whole[:-50])
    with pytest.raises(DataError, match="whole safetensors"):
        Baseline.load(tmp_path, "abc")


# --------------------------------------------------------------------------- errors


def test_a_baseline_with_other_questions_names_the_first_that_differs() -> None:
    turns, _ = turns_and_golds()
    baseline = record(make_model(TOKENIZER), turns, top=4)
    changed = list(turns)
    changed[3] = replace(turns[3], prompt=(*turns[3].prompt, 7))
    with pytest.raises(DataError, match=r"for 'cat:4' \(turn 3\)"):
        DivergenceMeter(changed, baseline)
    with pytest.raises(DataError, match="'river:4', which is not asked"):
        DivergenceMeter(turns[:-1], baseline)
    extra = turns_of_stories(TOKENIZER, [*sample_stories(), story("new", "A text.", [("Who?", "me")])], 10**6)
    with pytest.raises(DataError, match="got 'nothing'.*for 'new:1'"):
        DivergenceMeter(extra, baseline)


def test_half_an_evaluation_is_never_a_baseline_or_a_divergence() -> None:
    turns, golds = turns_and_golds()
    model = make_model(TOKENIZER)
    recorder = BaselineRecorder(turns)
    texts = generate(model, TOKENIZER, turns[:7], RULE, on_gold=recorder).texts
    with pytest.raises(TrialError, match="'train:3'"):
        recorder.finish([*texts] + [""] * 8, "abc")
    meter = DivergenceMeter(turns, record(model, turns))
    with pytest.raises(TrialError, match="'cat:1'"):
        meter.finish([""] * len(turns), golds)
    with pytest.raises(DataError, match="must cover the same turns"):
        compare_answers(["a"], ["a", "b"], [["a"], ["b"]])
    with pytest.raises(DataError, match="no.*|gold tokens, got none for 'x'"):
        BaselineRecorder([Turn("x", (1, 2))])


def test_infinite_gold_likelihoods_name_the_turn() -> None:
    turns, _ = turns_and_golds()
    recorder = BaselineRecorder(turns)
    logits = torch.zeros(len(turns[1].gold), len(TOKENIZER))
    logits[:, turns[1].gold[0]] = float("-inf")
    with pytest.raises(TrialError, match="'cat:2'"):
        recorder(GoldLogits((1,), (len(turns[1].gold),), torch.tensor(turns[1].gold), logits))


def test_flips_count_right_answers_that_became_wrong_and_wrong_ones_that_became_right() -> None:
    golds = [["yes", "yeah"], ["no"], ["the cat"], ["red"]]
    same, flipped = compare_answers(["Yes.", "yes", "cat", "blue"], ["yeah", "no", "a dog", "green"], golds)
    assert same.tolist() == [False, False, False, False]
    assert flipped.tolist() == [False, True, True, False]


@pytest.mark.slow
def test_top_256_of_smollm2_keeps_nearly_all_of_the_exact_kl() -> None:
    model, tokenizer = real_model()
    stories = sorted(real_stories(), key=lambda one: len(one["story"]) * len(one["questions"]))[:1]
    rule = StopRule(("\n",), True, 4)
    turns = turns_of_stories(tokenizer, stories, max_prompt_tokens(model, tokenizer, rule))
    baseline = record(model, turns, 256, tokenizer, rule)
    exact_p = [exact_logprobs(model, turn) for turn in turns]
    keep = {name: weight.clone() for name, weight in model.state_dict().items()}
    try:
        meter = DivergenceMeter(turns, baseline)
        texts = generate(noisy(model, 0.05), tokenizer, turns, rule, on_gold=meter).texts
        golds = [golds_for_turn(stories[0], index) for index in range(len(turns))]
        found = meter.finish(texts, golds).kl_top256
        exact = np.array([float((p.exp() * (p - exact_logprobs(model, turn))).sum())
                          for p, turn in zip(exact_p, turns, strict=True)])
    finally:
        model.load_state_dict(keep)
    assert (found <= exact + 1e-4).all()
    assert found.sum() > 0.9 * exact.sum() > 0
