"""Print the runs of the newest commands in a tracking store as Markdown tables with their provenance.

python -m benchmarks.results_table [COMMANDS]        # reads MLFLOW_TRACKING_URI; COMMANDS: how many of the newest, default 1
"""

from __future__ import annotations

import sys

from llamaquant.tracking import MlflowTracker, RunFacts

COLUMNS = (
    ("bits/param", "cost/bits_per_param", ".3f"),
    ("checkpoint MiB", "cost/checkpoint_mib", ".2f"),
    ("F1 last turn", "quality/f1_last_turn", ".4f"),
    ("EM last turn", "quality/em_last_turn", ".4f"),
    ("weights MiB", "cost/weights_mib", ".1f"),
    ("peak alloc MiB", "cost/peak_alloc_mib", ".1f"),
    ("peak RSS MiB", "cost/peak_rss_mib", ".0f"),
    ("prefill 512 ms", "speed/prefill_512_ms", ".2f"),
    ("prefill 1024 ms", "speed/prefill_1024_ms", ".2f"),
    ("decode b1 ms", "speed/decode_b1_ms_per_step", ".2f"),
    ("iqr ms", "speed/decode_b1_iqr_ms", ".2f"),
    ("p90 ms", "speed/decode_b1_p90_ms", ".2f"),
    ("decode b8 ms", "speed/decode_b8_ms_per_step", ".2f"),
    ("reload error", "artifact/reload_max_abs_logit_error", ".3g"),
)
PROVENANCE = (
    "git.commit",
    "git.dirty",
    "hardware.gpu",
    "hardware.cpu",
    "hardware.cpu_count",
    "python",
    "version.torch",
    "version.transformers",
    "version.bitsandbytes",
    "version.gptqmodel",
    "version.lm-eval",
)


def table(runs: list[RunFacts]) -> str:
    """One line per run; columns that no run has are left out."""
    columns = [column for column in COLUMNS if any(column[1] in run.metrics for run in runs)]
    head = ["config", "dtype", *(heading for heading, _, _ in columns), "kernel"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for run in runs:
        cells = [format(run.metrics[name], form) if name in run.metrics else "" for _, name, form in columns]
        state = (
            run.tags.get("llamaquant.kernel", "")
            if run.status == "FINISHED"
            else f"{run.status}: {run.tags.get('llamaquant.reason', '')}"
        )
        lines.append(" | ".join([run.name, run.params.get("config.dtype", ""), *cells, state]))
    return "\n".join(f"| {line} |" for line in lines)


def main(count: int) -> None:
    tracker = MlflowTracker()
    for parent in tracker.parents()[:count]:
        children = tracker.children(parent.run_id)
        if not children:
            continue
        shared = {name: value for name, value in parent.params.items() if value and name.startswith("config.")}
        print(
            f"\n### {parent.name}: "
            + ", ".join(f"{name.removeprefix('config.')} {value}" for name, value in shared.items())
            + "\n"
        )
        print(table(children) + "\n")
        print("; ".join(f"{name} {children[0].tags[name]}" for name in PROVENANCE if name in children[0].tags))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
