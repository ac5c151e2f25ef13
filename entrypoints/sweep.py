"""All configs of a method family as one study: `mlflow run . -e sweep -P method=bnb`."""

from collections.abc import Sequence

from llamaquant import cli
from llamaquant.presets import sweep

OWN = {
    "method": ("bnb", "bnb, gptq, awq or all"),
    "grid": ("default", "default, or full for every combination"),
}


def main(argv: Sequence[str]) -> None:
    values, _ = cli.parse(cli.parser(__doc__ or "", OWN), argv)
    cli.execute("sweep", sweep(values["method"], values["grid"], **cli.settings(values)), values)


if __name__ == "__main__":
    cli.guarded(main)
