"""Intervals, verdicts, racing and selection: what a set of scored questions shows, and what it does not."""

from llamaquant.statistics.intervals import ClusterInterval, difference_interval, mean_interval
from llamaquant.statistics.power import Planning, check_power, decidable_margin, stories_for_margin
from llamaquant.statistics.racing import RaceDecision, RacePlan, look
from llamaquant.statistics.scores import TurnScores, split_stories, story_order
from llamaquant.statistics.selection import Finalist, Selection, confirm
from llamaquant.statistics.sentences import sentence
from llamaquant.statistics.verdict import Comparison, Criterion, Verdict, compare

__all__ = [
    "ClusterInterval",
    "Comparison",
    "Criterion",
    "Finalist",
    "Planning",
    "RaceDecision",
    "RacePlan",
    "Selection",
    "TurnScores",
    "Verdict",
    "check_power",
    "compare",
    "confirm",
    "decidable_margin",
    "difference_interval",
    "look",
    "mean_interval",
    "sentence",
    "split_stories",
    "stories_for_margin",
    "story_order",
]
