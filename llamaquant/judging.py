"""From stored predictions to verdicts: the paired comparison of a config with the baseline of its own command."""

from __future__ import annotations

from dataclasses import dataclass

from llamaquant.config import ExperimentConfig
from llamaquant.runner import RunOptions, stored_scores


@dataclass(frozen=True)
class Judgement:
    """Interval metrics of one config, and its verdict in one word and one sentence (empty where nothing was compared)."""

    metrics: dict[str, float]
    tags: dict[str, str]
    verdict: str = ""
    sentence: str = ""


def judge(config: ExperimentConfig, baseline: ExperimentConfig | None, options: RunOptions) -> Judgement | None:
    """Compare all turns that `config` and `baseline` answered; None where `config` scored no turns.

    Without a baseline, or for the baseline itself, only the interval of its own F1 is given, unless an F1 floor is asked for.

    Raises:
        DataError: the two answered different questions.
    """
    from llamaquant.statistics import Criterion, TurnScores, compare, mean_interval, sentence

    rows = stored_scores(options.output, config)
    if not rows:
        return None
    scores = TurnScores.from_rows(rows)
    other = stored_scores(options.output, baseline) if baseline is not None and baseline != config else []
    if not other and options.f1_floor is None:
        return Judgement(mean_interval(scores).to_metrics("quality/f1"), {})
    criterion = Criterion(f1_floor=options.f1_floor) if options.f1_floor is not None else Criterion(max_f1_drop=options.max_f1_drop)
    comparison = compare(scores, TurnScores.from_rows(other) if other else None, criterion)
    return Judgement(comparison.to_metrics("quality/"), comparison.to_tags("quality."), comparison.verdict.value, sentence(comparison))
