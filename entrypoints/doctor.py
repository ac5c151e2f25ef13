"""What works on this machine: `mlflow run . -e doctor`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llamaquant import cli, terminal
from llamaquant.doctor import examine


def main(argv: Sequence[str]) -> None:
    arguments = cli.bare_parser(__doc__ or "", {
        "device": ("auto", "auto, cpu, cuda or cuda:N"), "output": ("outputs", "where checkpoints would go")})
    values, _ = cli.parse(arguments, argv)
    if not terminal.print_findings(examine(values["device"], Path(values["output"]))):
        sys.exit(1)


if __name__ == "__main__":
    cli.guarded(main)
