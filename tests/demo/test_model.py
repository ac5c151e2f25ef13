"""The embedded checkpoint and the functions that made it."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.demo import MODEL_PATH, demo_stories
from llamaquant.demo.capacity import capacity_curve, quantized_copy, round_to_nearest
from llamaquant.demo.evaluate import evaluate
from llamaquant.demo.train import ModelShape, TrainConfig, build_model, train_demo
from llamaquant.errors import ConfigError


@pytest.fixture(scope="module")
def checkpoint():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(MODEL_PATH)


def test_checkpoint_is_a_small_plain_llama(checkpoint):
    model, _ = checkpoint
    config = json.loads((MODEL_PATH / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] and config["dtype"] == "bfloat16"
    assert config["max_position_embeddings"] == 2048 and "auto_map" not in config
    assert 0.8e6 <= sum(p.numel() for p in model.parameters()) <= 2.5e6
    assert sum(file.stat().st_size for file in MODEL_PATH.iterdir()) <= 8 * 2**20
    assert not list(MODEL_PATH.glob("*.bin")) and not list(MODEL_PATH.glob("*.py"))
    linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert all(m.in_features % 128 == 0 and m.out_features % 128 == 0 for m in linears)


def test_checkpoint_answers_questions(checkpoint):
    score = evaluate(*checkpoint, demo_stories("evaluation", 40), batch_size=40)
    assert score.questions == 40
    assert 0.6 < score.f1 <= 1.0 and score.em <= score.f1


@pytest.mark.slow
def test_two_bits_break_the_checkpoint_and_eight_do_not(checkpoint):
    curve = capacity_curve(*checkpoint, demo_stories("confirmation", 60), ((8, 128), (2, 128)), batch_size=60)
    assert curve["full"] - curve["8bit_g128"] < 0.03
    assert curve["full"] - curve["2bit_g128"] > 0.05


def test_card_states_where_the_weights_come_from():
    card = (MODEL_PATH / "README.md").read_text()
    assert "license: mit" in card
    for pattern in (
        r"\| data \| \d+ generated stories, split `train`, seed \d+ \|",
        r"\| steps \| \d+ of \d+ dialogues",
        r"\| final training loss \| 0\.\d+",
        r"\| F1, last turn \(as lm-eval counts\) \| 0\.\d+",
        r"\| F1, all turns \(official count\) \| 0\.\d+",
        r"\| commit \| [0-9a-f]{40} \|",
    ):
        assert re.search(pattern, card), pattern
    f1 = float(re.search(r"F1, last turn \(as lm-eval counts\) \| (0\.\d+)", card)[1])
    assert 0.75 <= f1 <= 0.97


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from((32, 64, 128)), st.floats(1e-3, 10))
def test_round_to_nearest_is_within_half_a_step(seed, bits, group, spread):
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(seed)) * spread
    groups = weight.reshape(8, -1, group)
    step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / (2**bits - 1)  # [8, groups]
    quantized = round_to_nearest(weight, bits, group).reshape(8, -1, group)
    # the zero point is rounded too: one end of the range can be off by a further half step
    assert ((quantized - groups).abs() <= step[..., None] * 1.001).all()
    assert all(len(torch.unique(row)) <= 2**bits for row in quantized.reshape(-1, group))
    assert torch.allclose(round_to_nearest(quantized.reshape(8, 256), bits, group), quantized.reshape(8, 256), atol=1e-4 * spread)


@pytest.mark.parametrize(("bits", "group"), [(1, 32), (9, 32), (4, 100)])
def test_round_to_nearest_refuses(bits, group):
    with pytest.raises(ConfigError):
        round_to_nearest(torch.zeros(4, 256), bits, group)


def test_quantized_copy_leaves_the_rest_alone():
    model = build_model(ModelShape(layers=1, vocab_size=512)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clone = quantized_copy(model, 2, 128).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = {name for name in before if not torch.equal(before[name], clone[name])}
    assert changed == {name for name in before if "_proj" in name}


@pytest.mark.parametrize(
    "shape",
    [{"hidden_size": 192}, {"ffn_size": 100}, {"layers": 0}, {"kv_heads": 3}, {"kv_heads": 1}, {"vocab_size": 100}],
)
def test_shapes_that_no_group_size_fits(shape):
    with pytest.raises(ConfigError):
        ModelShape(**shape)


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"batch_size": -1}, {"learning_rate": 2.0}, {"device": "tpu"}, {"max_minutes": 0}, {"story_weight": -0.1}],
)
def test_configs_that_cannot_run(values):
    with pytest.raises(ConfigError):
        TrainConfig(**values)


@pytest.mark.slow
def test_training_writes_a_checkpoint_and_repeats_by_seed(tmp_path):
    from transformers import AutoModelForCausalLM

    config = TrainConfig(
        shape=ModelShape(layers=1, vocab_size=600), stories=60, steps=3, batch_size=4, warmup_steps=1, workers=1,
        eval_every=2, eval_stories=3, device="cpu", commit="0" * 40,
    )  # fmt: skip
    heard = []
    results = [train_demo(config, tmp_path / run, lambda step, values: heard.append((step, values))) for run in ("a", "b")]
    models = [AutoModelForCausalLM.from_pretrained(result.folder).state_dict() for result in results]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert results[0].steps == 3 and results[0].train_loss == results[1].train_loss
    assert any("f1_last_turn" in values for _, values in heard) and any("train_loss" in values for _, values in heard)
    assert "0" * 40 in (tmp_path / "a" / "README.md").read_text()
