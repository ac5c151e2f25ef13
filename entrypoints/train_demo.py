"""Train the embedded demo model anew: `mlflow run . -e train_demo`. The result goes to `out`, not into the package."""

from collections.abc import Sequence
from pathlib import Path

from llamaquant import cli
from llamaquant.demo.train import TrainConfig
from llamaquant.environment import git_commit

OWN = {
    "out": ("outputs/demo", "folder of the new checkpoint"),
    "stories": (TrainConfig.stories, "training stories"),
    "steps": (TrainConfig.steps, "optimiser steps"),
    "batch_size": (TrainConfig.batch_size, "dialogues per step"),
    "learning_rate": (TrainConfig.learning_rate, "peak of the warm-up"),
    "seed": (TrainConfig.seed, "of data and initial weights"),
    "device": (TrainConfig.device, "auto, cuda or cpu"),
    "workers": (TrainConfig.workers, "processes that write stories"),
    "compile": (TrainConfig.compile, "torch.compile: faster on a GPU after about a minute"),
    "eval_stories": (TrainConfig.eval_stories, "evaluation stories at the end"),
}


def main(argv: Sequence[str]) -> None:
    values, _ = cli.parse(cli.bare_parser(__doc__ or "", OWN), argv)
    out = Path(values.pop("out")).expanduser()
    config = TrainConfig(**{name: cli.typed(name, text, OWN[name][0]) for name, text in values.items()}, commit=git_commit())
    from llamaquant.tracking import MlflowTracker
    from llamaquant.training import train_tracked

    result = train_tracked(config, out, MlflowTracker())
    print(f"{result.folder}: F1 {result.f1_last_turn:.4f} (last turn), {result.f1_all_turns:.4f} (all turns), "
          f"{result.parameters / 1e6:.2f} M parameters, {result.seconds / 60:.1f} min")


if __name__ == "__main__":
    cli.guarded(main)
