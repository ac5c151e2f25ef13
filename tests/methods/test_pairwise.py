"""The pairwise preset: few configs, every value, every pair."""

import itertools

from llamaquant.methods import QuantMethod
from llamaquant.presets import PAIRWISE, sweep


def points() -> list[tuple[int, int, bool]]:
    """(bits, group, symmetric) of the configs that have all three."""
    found = []
    for config in sweep("all")[2:]:
        options, prefix = config.quantization.options, config.quantization.options.prefix
        if hasattr(options, f"{prefix}_group_size"):
            symmetric = not options.awq_zero_point if prefix == "awq" else getattr(options, f"{prefix}_sym")
            found.append((options.bits, getattr(options, f"{prefix}_group_size"), symmetric))
    return found


def test_it_is_small_and_holds_every_method() -> None:
    assert 22 <= len(PAIRWISE) <= 28
    assert {config.quantization.method for config in sweep("all")} == set(QuantMethod)


def test_every_pair_of_bits_group_and_grid_is_run() -> None:
    bits, groups, grids = (8, 4, 3, 2), (128, 64, 32, -1), (True, False)
    found = points()
    assert {(b, g) for b, g, _ in found} == set(itertools.product(bits, groups))
    assert {(b, s) for b, _, s in found} == set(itertools.product(bits, grids))
    assert {(g, s) for _, g, s in found} == set(itertools.product(groups, grids))


def test_every_value_of_the_own_options_is_run() -> None:
    for name, wanted in {"gptq_desc_act": {True, False}, "awq_group_size": {32, 64, 128}, "awq_zero_point": {True, False},
                         "bnb_4bit_quant_type": {"nf4", "fp4"}, "bnb_4bit_use_double_quant": {True, False},
                         "gptq_bits": {8, 4, 3, 2}, "gptq_group_size": {128, 64, 32, -1}}.items():
        assert {spec[name] for spec in PAIRWISE if name in spec} == wanted, name
    assert {config.quantization.options.head_bits for config in sweep("all")} == {16, 8, 4}
