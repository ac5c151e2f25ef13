"""One experiment: `mlflow run . -e main -P experiment=bnb_4bit_nf4`, or a method with its options. Also --quick."""

from collections.abc import Sequence

from llamaquant import cli
from llamaquant.presets import quick

OWN = {
    "experiment": ("", "a preset by name"),
    "method": ("", "none, bnb_8bit, bnb_4bit, gptq, awq; its options follow as --bits 4 --group_size 64 and so on"),
    "name": ("", "name of the run; the method's label if empty"),
}


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser(__doc__ or "", OWN)
    arguments.add_argument("--quick", action="store_true", help="run fp16, 8-bit and 4-bit NF4 instead of one experiment")
    values, options = cli.parse(arguments, argv, extra=True)
    if values["quick"] == "True":
        cli.execute("quick", quick(**cli.settings(values)), values)
    else:
        cli.execute("main", [cli.one_config(values, options)], values)


if __name__ == "__main__":
    cli.guarded(main)
