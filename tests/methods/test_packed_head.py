"""Packed embedding and head: against the definition of rounding to nearest, and the plain layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.methods import _packed_head
from llamaquant.methods._packed_head import dequantize_rows, quantize_rows
from llamaquant.methods.base import embedding_bytes, head_group_size
from llamaquant.model import ModelShape


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 9), hidden=st.sampled_from([16, 32, 64, 96, 256]),
       seed=st.integers(0, 99), scale=st.sampled_from([0.02, 1.0, 30.0]))
def test_the_error_is_at_most_half_a_step_and_a_step_at_the_short_end(bits: int, rows: int, hidden: int, seed: int, scale: float) -> None:
    weight = torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)) * scale
    packed, scales = quantize_rows(weight, bits)
    assert packed.numel() * packed.element_size() == rows * hidden * bits // 8
    assert scales.shape == (rows, hidden // head_group_size(hidden)) and scales.dtype == torch.float16
    step = scales.float().abs().repeat_interleave(head_group_size(hidden), dim=1)
    error = (dequantize_rows(packed, scales, torch.float32) - weight).abs()
    # weights like those of real embeddings: below a deviation of 0.003 the fp16 scales of 8 bits become subnormal, and coarser
    # the end opposite to the group's extreme value has one level less, and the fp16 scale is off by 2^-11 of 2^(bits-1) steps
    assert (error <= step * (1.0 + 2.0 ** (bits - 11)) + 1e-6 * scale).all()
    assert (error <= step * (0.5 + 2.0 ** (bits - 11)) + 1e-6 * scale).float().mean() > 0.7


def test_zero_rows_stay_zero() -> None:
    packed, scales = quantize_rows(torch.zeros(3, 64), 4)
    assert not dequantize_rows(packed, scales, torch.float32).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_are_the_plain_ones_on_unpacked_weights(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packed_head, "ROWS_AT_ONCE", 7)  # several pieces, the last one short
    packed, scales = quantize_rows(torch.randn(40, 64), bits)
    weight = dequantize_rows(packed, scales, torch.float32)
    embedding, head = _packed_head._modules()
    ids, states = torch.randint(0, 40, (2, 5)), torch.randn(2, 5, 64)
    assert torch.equal(embedding(packed, scales, torch.float32)(ids), torch.nn.functional.embedding(ids, weight))
    torch.testing.assert_close(head(packed, scales, torch.float32)(states), states @ weight.T)


def test_predicted_bytes_of_a_1b_model() -> None:
    llama = ModelShape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64, vocabulary=128256, context=131072, tied=True)
    assert embedding_bytes(llama, 16, 2) == 128256 * 2048 * 2
    assert embedding_bytes(llama, 8, 2) / (128256 * 2048) * 8 == 8.25
    assert embedding_bytes(llama, 4, 2) / (128256 * 2048) * 8 == 4.25
