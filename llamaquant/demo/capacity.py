"""Does the demo model have something to lose? Round-to-nearest fake quantization of its block linears.

This decides the size of the demo model; the real methods live in llamaquant/methods.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamaquant.demo.evaluate import evaluate
from llamaquant.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GRID: tuple[tuple[int, int], ...] = tuple((bits, group) for bits in (8, 4, 3, 2) for group in (128, 32))
"""(bits, group size) of the simulation."""


def round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Weight [out, in] after asymmetric uniform quantization of groups of `group_size` inputs, as floats again.

    Per group: scale = (max - min) / (2^bits - 1) with 0 inside [min, max], an integer zero point, round to nearest
    (Jacob et al., 2018, "Quantization and Training of Neural Networks", eq. 1).
    """
    import torch

    out_features, in_features = weight.shape
    if not 2 <= bits <= 8 or in_features % group_size:
        raise ConfigError(
            f"bits must be 2..8 and the group size must divide {in_features} inputs, got bits={bits},"
            f" group_size={group_size}: choose values that fit"
        )
    groups = weight.float().reshape(out_features, -1, group_size)  # [out, groups, group]
    low = groups.amin(-1, keepdim=True).clamp(max=0.0)
    high = groups.amax(-1, keepdim=True).clamp(min=0.0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=1e-12)
    zero = torch.round(-low / scale)
    codes = torch.clamp(torch.round(groups / scale) + zero, 0, top)
    return ((codes - zero) * scale).reshape(out_features, in_features).to(weight.dtype)


def quantized_copy(model: PreTrainedModel, bits: int, group_size: int) -> PreTrainedModel:
    """A copy of a Llama model whose block linears went through round_to_nearest; embeddings stay as they are."""
    import torch

    clone = copy.deepcopy(model)
    with torch.no_grad():
        for module in clone.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(round_to_nearest(module.weight, bits, group_size))
    return clone


def capacity_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Mapping[str, Any]],
    grid: Sequence[tuple[int, int]] = GRID,
    batch_size: int = 256,
) -> dict[str, float]:
    """Last-turn F1 (lm-eval's count, in [0, 1]) of the model as it is (`full`) and per grid entry (`4bit_g128`)."""
    curve = {"full": evaluate(model, tokenizer, stories, batch_size=batch_size).f1}
    for bits, group_size in grid:
        clone = quantized_copy(model, bits, group_size)
        curve[f"{bits}bit_g{group_size}"] = evaluate(clone, tokenizer, stories, batch_size=batch_size).f1
    return curve
