"""fp16, 8-bit and 4-bit NF4 side by side: `mlflow run . -e quick`."""

from collections.abc import Sequence

from llamaquant import cli
from llamaquant.presets import quick


def main(argv: Sequence[str]) -> None:
    values, _ = cli.parse(cli.parser(__doc__ or "", {}), argv)
    cli.execute("quick", quick(**cli.settings(values)), values)


if __name__ == "__main__":
    cli.guarded(main)
