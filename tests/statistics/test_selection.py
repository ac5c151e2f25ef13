"""Confirmation: at most three, cheapest first, alpha / 3 each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llamaquant.errors import ConfigError
from llamaquant.statistics import Finalist, TurnScores, Verdict, confirm, sentence


def finalist(name: str, cost: float, mean: float, n: int = 100, spread: float = 0.02) -> Finalist:
    values = np.random.default_rng(len(name)).uniform(-spread, spread, n)
    values += mean - values.mean()
    return Finalist(name, cost, TurnScores.from_rows((f"s{i}", 0, 0.5 + x) for i, x in enumerate(values)))


BASE = TurnScores.from_rows((f"s{i}", 0, 0.5) for i in range(100))


def test_the_cheapest_that_passes_wins_and_dearer_ones_stay_untested():
    result = confirm([finalist("c", 8, 0.0), finalist("a", 3, -0.05), finalist("b", 4, 0.0)], BASE)
    assert [name for name, _ in result.comparisons] == ["a", "b"]
    assert [c.verdict for _, c in result.comparisons] == [Verdict.FAIL, Verdict.PASS]
    assert result.winner == "b"
    assert result.untested == ("c",)
    assert sentence(result).startswith("confirmed: b, the cheapest finalist that passes: F1 drops by less than 1 point")
    metrics = result.to_metrics()
    assert metrics["confirmation/passed"] == 1.0
    assert metrics["confirmation/tested"] == 2.0
    assert metrics["confirmation/finalist_2/f1_diff"] == pytest.approx(0.0, abs=1e-12)


def test_each_is_tested_at_a_third_of_alpha():
    result = confirm([finalist("b", 4, 0.0)], BASE)
    judged = result.comparisons[0][1].judged
    assert judged.confidence == pytest.approx(1 - 2 * 0.025 / 3)
    assert judged.half_width >= stats.t.isf(0.025 / 3, 99) * judged.standard_error * (1 - 1e-9)
    assert "98.3% interval" in sentence(result)


def test_a_pass_at_alpha_may_be_none_at_a_third():
    from llamaquant.statistics import compare

    near = finalist("near", 4, -0.0075, spread=0.0195)
    assert compare(near.scores, BASE).verdict is Verdict.PASS
    result = confirm([near, finalist("far", 3, -0.2)], BASE)
    assert result.winner is None
    assert sentence(result).startswith("none of 2 finalists is confirmed; closest is near: ")


def test_earlier_uses_are_counted_and_said():
    result = confirm([finalist("b", 4, -0.1)], BASE, earlier_uses=2)
    assert sentence(result).startswith("the finalist b is not confirmed: F1 drops by more than 1 point")
    assert sentence(result).endswith("; these stories had served 2 confirmations before")
    assert result.to_metrics()["confirmation/earlier_uses"] == 2.0


@pytest.mark.parametrize("names", [[], ["a", "b", "c", "d"], ["a", "a"]])
def test_bad_fields_of_finalists_are_refused(names):
    with pytest.raises(ConfigError):
        confirm([finalist(name, 1.0, 0.0) for name in names], BASE)


def test_negative_earlier_uses_are_refused():
    with pytest.raises(ConfigError, match="earlier_uses"):
        confirm([finalist("a", 1.0, 0.0)], BASE, earlier_uses=-1)
