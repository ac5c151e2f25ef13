"""Shared-prefix decoding against lm-eval's own backend, transformers' forward and plain softmax attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from llamaquant.coqa.prompt import prompt_for_turn
from llamaquant.errors import BackendError, ConfigError, DataError, TrialError
from llamaquant.evaluators.generate import generate, memory_model
from llamaquant.evaluators.prefix_attention import PrefixStore
from llamaquant.evaluators.prefix_plan import MemoryModel, PrefixGroup, Turn, plan_batches, plan_groups
from llamaquant.evaluators.prefix_stop import StopChecker, StopRule
from llamaquant.evaluators.prefix_tokens import encode_prompts, max_prompt_tokens, turns_of_stories
from tests.evaluators.shared_prefix_samples import (
    make_model,
    make_tokenizer,
    real_model,
    real_stories,
    sample_stories,
    story,
)

TOKENIZER = make_tokenizer()
LONG = 10**6


def lm_eval_answers(model: Any, tokenizer: Any, stories: list[dict[str, Any]], rule: StopRule, batch_size: int = 1,
                    **kwargs: Any) -> list[str]:
    """What lm-eval's HF backend generates for every turn; the first line of it where the rule says so."""
    lm = HFLM(model, tokenizer=tokenizer, batch_size=batch_size, **kwargs)
    arguments = {"until": list(rule.until), "max_gen_toks": rule.max_new_tokens}
    prompts = [prompt_for_turn(one, index) for one in stories for index in range(len(one["questions"]))]
    texts = lm.generate_until(
        [Instance("generate_until", {}, (prompt, dict(arguments)), index) for index, prompt in enumerate(prompts)],
        disable_tqdm=True)
    return [text.strip().split("\n")[0].rstrip() if rule.first_line else text for text in texts]


# --------------------------------------------------------------------------- answers


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("rule", [
    StopRule(("\nQ:",), True, 12), StopRule(("\n",), False, 12), StopRule(("e", "th"), False, 12),
    StopRule(("a",), True, 1)])
def test_answers_equal_lm_evals(heads: int, kv_heads: int, rule: StopRule) -> None:
    model = make_model(TOKENIZER, heads=heads, kv_heads=kv_heads, seed=heads + kv_heads)
    stories = sample_stories()
    result = generate(model, TOKENIZER, turns_of_stories(TOKENIZER, stories, LONG), rule)
    assert list(result.texts) == lm_eval_answers(model, TOKENIZER, stories, rule)
    assert len(set(result.texts)) > 3 or rule.max_new_tokens == 1  # a model that always says the same tests nothing
    assert result.stats.groups == len(stories)
    assert result.stats.turns == 15


def test_rows_that_end_apart_and_dialogues_that_leave_give_the_same_answers() -> None:
    """Stop letters spread the ends of rows over many steps, so that rows are dropped and the prefix is compacted."""
    stories = [*sample_stories(), *[{**one, "id": one["id"] + "2", "story": one["story"] * 2}
                                    for one in sample_stories()]]
    rule = StopRule(("s", "o"), False, 40)
    model = make_model(TOKENIZER, seed=3)
    result = generate(model, TOKENIZER, turns_of_stories(TOKENIZER, stories, LONG), rule)
    lengths = {len(tokens) for tokens in result.token_ids}
    assert len(lengths) > 5
    assert list(result.texts) == lm_eval_answers(model, TOKENIZER, stories, rule)


def test_small_budget_and_small_chunks_change_nothing() -> None:
    model = make_model(TOKENIZER, seed=1)
    turns = turns_of_stories(TOKENIZER, sample_stories(), LONG)
    rule = StopRule(("\n",), True, 10)
    whole = generate(model, TOKENIZER, turns, rule)
    memory = memory_model(model, 10)
    longest = max(len(turn.tokens) for turn in turns)
    cut = generate(model, TOKENIZER, turns, rule, budget_bytes=memory.batch_bytes(1, longest, 2, 2),
                   prefill_chunk_tokens=1)
    assert cut.texts == whole.texts
    assert cut.stats.batches > whole.stats.batches == 1
    assert cut.stats.prefill_tokens > whole.stats.prefill_tokens  # groups were cut, their prefix was run again


def test_a_model_with_other_linear_layers_only_needs_its_forward() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear) -> None:
            super().__init__()
            self.register_buffer("packed", inner.weight.detach().to(torch.float16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.packed.to(x.dtype))

    model = make_model(TOKENIZER, seed=5)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(parent, name, Wrapped(child))
    rule = StopRule(("\nQ:",), True, 8)
    result = generate(model, TOKENIZER, turns_of_stories(TOKENIZER, sample_stories(), LONG), rule)
    assert list(result.texts) == lm_eval_answers(model, TOKENIZER, sample_stories(), rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gold_logits_are_as_near_to_float32_as_transformers_are(dtype: torch.dtype) -> None:
    turns = turns_of_stories(TOKENIZER, sample_stories(), LONG)
    exact = _gold_logits(make_model(TOKENIZER, seed=2), turns)
    model = make_model(TOKENIZER, seed=2, dtype=dtype)
    ours = _gold_logits(model, turns)
    for turn, want, have in zip(turns, exact, ours, strict=True):
        theirs = _own_logits(model, turn)
        assert (have - want).abs().mean() < 1.5 * (theirs - want).abs().mean() + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decodes_within_the_noise_of_batching(dtype: torch.dtype) -> None:
    model = make_model(TOKENIZER, seed=2, dtype=dtype)
    rule, stories = StopRule(("\nQ:",), True, 4), sample_stories()
    ours = generate(model, TOKENIZER, turns_of_stories(TOKENIZER, stories, LONG), rule).texts
    alone, batched = (lm_eval_answers(model, TOKENIZER, stories, rule, size) for size in (1, 5))
    own_noise = sum(one != other for one, other in zip(alone, batched, strict=True))
    assert sum(one != other for one, other in zip(ours, alone, strict=True)) <= own_noise + 2


@pytest.mark.slow
def test_smollm2_answers_all_turns_of_real_stories_as_lm_eval_does() -> None:
    model, tokenizer = real_model()
    stories = sorted(real_stories(), key=lambda one: len(one["story"]) * len(one["questions"]))[:2]
    rule = StopRule(("\n",), False, 256)
    limit = max_prompt_tokens(model, tokenizer, rule)
    result = generate(model, tokenizer, turns_of_stories(tokenizer, stories, limit), rule)
    assert result.stats.turns_alone == 0
    assert list(result.texts) == lm_eval_answers(model, tokenizer, stories, rule)


# --------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_prompt_tokens_equal_lm_evals_padded_batch(add_bos: bool, merge: bool, add_bos_token: bool | None) -> None:
    tokenizer = make_tokenizer(add_bos, merge)
    lm = HFLM(make_model(tokenizer), tokenizer=tokenizer, batch_size=1, add_bos_token=add_bos_token)
    texts = [prompt_for_turn(one, index) for one in sample_stories() for index in range(len(one["questions"]))]
    texts.append("<s>" + texts[0])
    for limit in (LONG, 17):
        encoded = encode_prompts(tokenizer, texts, limit, add_bos_token)
        for text, have in zip(texts, encoded, strict=True):
            want, _ = lm.tok_batch_encode([text], left_truncate_len=limit)
            assert list(have) == want[0].tolist()


def test_every_turn_of_the_real_stories_has_lm_evals_tokens_and_shares_its_prefix() -> None:
    _, tokenizer = real_model()
    stories = real_stories()[::30]
    turns = turns_of_stories(tokenizer, stories, LONG)
    texts = [prompt_for_turn(one, index) for one in stories for index in range(len(one["questions"]))]
    assert [list(turn.prompt) for turn in turns] == [tokenizer.encode(text) for text in texts]
    assert len(plan_groups(turns)) == len(stories)


def test_gold_tokens_spell_the_answer_and_a_merged_line_break_keeps_the_prefix_shared() -> None:
    tokenizer = make_tokenizer(merge_newlines=True)
    stories = sample_stories()
    turns = turns_of_stories(tokenizer, stories, LONG)
    golds = [answer["input_text"] for one in stories for answer in one["answers"]]
    for turn, gold in zip(turns, golds, strict=True):
        assert tokenizer.decode(turn.gold).strip() == gold
    assert any(tokenizer.decode(turn.gold).endswith("\n\n") for turn in turns)  # `.` and the break are one token
    assert len(plan_groups(turns)) == len(stories)


def test_a_turn_that_merges_across_the_answer_boundary_is_prefilled_alone_and_counted() -> None:
    tokenizer = make_tokenizer()
    odd = story("odd", "A tale.", [("Who?", "me"), ("Where?", "here"), ("When?", "now")])
    turns = turns_of_stories(tokenizer, [odd], LONG)
    other = Turn(turns[1].key, (*turns[1].prompt[:-1], turns[1].prompt[-1] + 1), turns[1].gold)
    changed = [turns[0], other, turns[2]]
    model = make_model(tokenizer)
    result = generate(model, tokenizer, changed, StopRule((), False, 5))
    assert (result.stats.groups, result.stats.turns_alone) == (2, 1)
    want = model.generate(torch.tensor([other.prompt]), max_new_tokens=5, do_sample=False, pad_token_id=1)
    assert list(result.token_ids[1]) == want[0, len(other.prompt):].tolist()


def test_truncated_prompts_are_lm_evals_windows_and_are_prefilled_alone() -> None:
    model, stories, rule = make_model(TOKENIZER, context=60), sample_stories(), StopRule(("\n",), True, 12)
    limit = max_prompt_tokens(model, TOKENIZER, rule)
    assert limit == 48
    result = generate(model, TOKENIZER, turns_of_stories(TOKENIZER, stories, limit), rule)
    assert result.stats.turns_alone > 2
    assert list(result.texts) == lm_eval_answers(model, TOKENIZER, stories, rule)


# --------------------------------------------------------------------------- gold logits


def _gold_logits(model: Any, turns: list[Turn]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}

    def keep(chunk: Any) -> None:
        for turn, part, ids in zip(chunk.turns, chunk.logits.split(chunk.counts), chunk.token_ids.split(chunk.counts),
                                   strict=True):
            assert tuple(ids.tolist()) == turns[turn].gold
            found[turn] = part

    generate(model, TOKENIZER, turns, StopRule(max_new_tokens=1), on_gold=keep, prefill_chunk_tokens=150)
    return [found[index] for index in range(len(turns))]


def _own_logits(model: Any, turn: Turn) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([turn.tokens])).logits[0].float()
    return logits[len(turn.prompt) - 1: len(turn.tokens) - 1]


def test_gold_logits_are_those_of_a_forward_over_the_turn_alone() -> None:
    model, turns = make_model(TOKENIZER), turns_of_stories(TOKENIZER, sample_stories(), LONG)
    for turn, logits in zip(turns, _gold_logits(model, turns), strict=True):
        torch.testing.assert_close(logits, _own_logits(model, turn), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------- attention


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_two_part_attention_equals_softmax_over_the_union(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([4, 16]))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rows = sorted(draw(st.integers(0, len(lengths) - 1)) for _ in range(draw(st.integers(1, 6))))
    sees = [draw(st.integers(1, lengths[dialogue])) for dialogue in rows]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def rand(heads: int, count: int) -> torch.Tensor:
        return 3 * torch.randn(1, heads, count, size, generator=generator)

    store = PrefixStore(len(lengths), max(lengths))
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    store.begin_prefill(list(zip(starts, lengths, strict=True)), range(len(lengths)), "cpu")
    total = sum(lengths)
    keys, values = rand(kv_heads, total), rand(kv_heads, total)
    store.attend_prefill(0, rand(kv_heads * groups, total), keys, values, 0.5)
    store.begin_decode(rows, sees, "cpu")
    own: list[list[torch.Tensor]] = [[] for _ in rows]
    numbers = list(rows)
    for step in range(4):
        store.reserve_token()
        query, key, value = rand(kv_heads * groups, len(rows)), rand(kv_heads, len(rows)), rand(kv_heads, len(rows))
        have = store.attend_decode(0, query, key, value, 0.5)
        for row, dialogue in enumerate(rows):
            own[row].append(torch.stack([key[0, :, row], value[0, :, row]]))
            suffix = torch.stack(own[row], dim=2)  # [2, Hk, t, E]
            part = slice(starts[dialogue], starts[dialogue] + sees[row])
            k = torch.cat([keys[0, :, part], suffix[0]], dim=1).repeat_interleave(groups, dim=0)
            v = torch.cat([values[0, :, part], suffix[1]], dim=1).repeat_interleave(groups, dim=0)
            weights = torch.softmax(0.5 * torch.einsum("he,hte->ht", query[0, :, row], k), dim=-1)
            torch.testing.assert_close(have[0, row], torch.einsum("ht,hte->he", weights, v), rtol=1e-4, atol=1e-5)
        if len(rows) > 1 and step < 3:
            kept = sorted(draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
            rows, sees, own = ([source[index] for index in kept] for source in (rows, sees, own))
            numbers = store.keep_rows(kept, [numbers[index] for index in kept], sees, "cpu")


# --------------------------------------------------------------------------- plan

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@given(st.lists(TOKENS, min_size=1, max_size=25))
def test_groups_cover_every_turn_once_under_the_fewest_carriers(sequences: list[tuple[int, ...]]) -> None:
    turns = [Turn(str(index), tokens) for index, tokens in enumerate(sequences)]
    groups = plan_groups(turns)
    assert sorted(member for group in groups for member in group.members) == list(range(len(turns)))
    for group in groups:
        assert all(group.tokens[: len(turns[member].tokens)] == turns[member].tokens for member in group.members)
    unique = set(sequences)
    maximal = [one for one in unique if not any(len(other) > len(one) and other[: len(one)] == one for other in unique)]
    assert len(groups) == len(maximal)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=12), st.integers(300, 2000))
def test_batches_keep_the_budget_and_every_member(shapes: list[tuple[int, int]], budget: int) -> None:
    memory = MemoryModel(kv_bytes_per_token=2, score_bytes_per_pair=3, bytes_per_row=7, suffix_tokens=5)
    groups, start = [], 0
    for length, members in shapes:
        groups.append(PrefixGroup(tuple(range(length)), tuple(range(start, start + members))))
        start += members
    batches = plan_batches(groups, memory, budget)
    assert sorted(member for batch in batches for group in batch for member in group.members) == list(range(start))
    for batch in batches:
        rows = [len(group.members) for group in batch]
        longest = max(len(group.tokens) for group in batch)
        assert memory.batch_bytes(len(batch), longest, sum(rows), max(rows)) <= budget


# --------------------------------------------------------------------------- stop rule


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="Q:AB \nöé.", max_size=25), st.sampled_from([("\nQ:",), ("\n",), ("A", "Q:"), ("é",), ()]),
       st.booleans())
def test_stop_rule_cuts_as_lm_eval_and_never_too_early(text: str, until: tuple[str, ...], first_line: bool) -> None:
    """Tokens are fed one by one; the text at the stop must be the one that all tokens would have given."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    if not ids:
        return
    checker = StopChecker(TOKENIZER, frozenset({TOKENIZER.eos_token_id}), StopRule(until, first_line, 1000))
    used = next((count for count in range(1, len(ids) + 1) if checker.is_complete(ids[:count])), len(ids))
    want = postprocess_generated_text(TOKENIZER.decode(ids), list(until), None)
    want = want.strip().split("\n")[0].rstrip() if first_line else want
    assert checker.text(ids[:used]) == want
    before = TOKENIZER.decode(ids[:used - 1])
    assert not any(term in before for term in until)  # and not later than the token that completes a stop string


# --------------------------------------------------------------------------- errors


def _turns() -> list[Turn]:
    return turns_of_stories(TOKENIZER, sample_stories(), LONG)


def test_nan_logits_name_the_first_turn_and_leave_the_model_as_it_was() -> None:
    model = make_model(TOKENIZER)
    token = TOKENIZER.encode(" train")[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    before = model.config._attn_implementation
    with pytest.raises(TrialError, match=r"finite, got nan for turn 'train:1'"):
        generate(model, TOKENIZER, _turns())
    assert model.config._attn_implementation == before
    model(torch.tensor([[5, 6]]))  # the model's own attention is back


def test_repeated_keys_and_empty_prompts_are_refused() -> None:
    model, turns = make_model(TOKENIZER), _turns()
    with pytest.raises(DataError, match="'cat:1' twice"):
        generate(model, TOKENIZER, [*turns, turns[0]])
    with pytest.raises(DataError, match="none for 'x'"):
        generate(model, TOKENIZER, [Turn("x", ())])


def test_bad_stories_name_the_first_offender() -> None:
    good = sample_stories()
    with pytest.raises(DataError, match="'cat'"):
        turns_of_stories(TOKENIZER, [*good, good[0]], LONG)
    with pytest.raises(DataError, match="'empty'"):
        turns_of_stories(TOKENIZER, [story("empty", "Text.", [("Who?", " ")])], LONG)
    missing = story("short", "Text.", [("Who?", "me"), ("Where?", "here")])
    missing["answers"].pop()
    with pytest.raises(DataError, match="'short'"):
        turns_of_stories(TOKENIZER, [*good, missing], LONG)
    with pytest.raises(DataError, match="must have stories"):
        turns_of_stories(TOKENIZER, [], LONG)


def test_features_that_the_engine_lacks_are_refused() -> None:
    model = make_model(TOKENIZER)
    model.generation_config.repetition_penalty = 1.2
    with pytest.raises(BackendError, match="repetition_penalty must be neutral.*got 1.2"):
        generate(model, TOKENIZER, _turns())
    sliding = transformers.MistralForCausalLM(transformers.MistralConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, eos_token_id=1, bos_token_id=0)).eval()
    with pytest.raises(BackendError, match="sliding_window"):
        generate(sliding, TOKENIZER, _turns())
    with pytest.raises(BackendError, match="memory budget"):
        generate(make_model(TOKENIZER), TOKENIZER, _turns(), budget_bytes=1000)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        max_prompt_tokens(make_model(TOKENIZER, context=64), TOKENIZER, StopRule(max_new_tokens=64))
