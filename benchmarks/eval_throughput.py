"""Questions per second of shared-prefix scoring beside lm-eval's HF backend, on the same questions, in one run.

    python -m benchmarks.eval_throughput --model M --dataset D --limit STORIES

Both sides get the same requests through the same call (`LM.generate_until`: tokens in, texts out). lm-eval runs at the
fastest of the given fixed batch sizes, in blocks of stories; before and after each block the shared-prefix backend
answers all stories, so that a machine that slows down slows both. Two stop rules:

- newline: `until` cut at the first newline for both, so that no stop rule is sold as speed. The headline.
- shipped: lm-eval generates up to its task's "\\nQ:", as installed; ours ends with the first line, all that is scored.

The last line is `ratio N`, the headline. Quantize first to compare a quantized checkpoint: any folder that
transformers loads will do.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Story = dict[str, Any]
Question = tuple[Story, int]
SHIPPED = "\nQ:"


@dataclass(frozen=True)
class Side:
    """One backend's answers to the questions; wall-clock and processor seconds of each pass or block."""

    texts: list[str]
    seconds: list[float]
    cpu_seconds: list[float]


@dataclass(frozen=True)
class Comparison:
    """Both sides under one stop rule."""

    rule: str
    batch_size: int
    questions: list[Question]
    ours: Side
    theirs: Side

    @property
    def ratio(self) -> float:
        """lm-eval's seconds over the mean of our passes."""
        return sum(self.theirs.seconds) / statistics.mean(self.ours.seconds)

    @property
    def cpu_ratio(self) -> float:
        """The same in processor seconds of this process: on a CPU that others use too, the steadier of the two."""
        return sum(self.theirs.cpu_seconds) / statistics.mean(self.ours.cpu_seconds)

    def summary(self) -> dict[str, Any]:
        count = len(self.questions)
        first = [[text.strip().split("\n")[0].strip() for text in side.texts] for side in (self.ours, self.theirs)]
        return {
            "rule": self.rule, "questions": count, "lm_eval_batch_size": self.batch_size,
            "ours_questions_per_second": round(count / statistics.mean(self.ours.seconds), 3),
            "lm_eval_questions_per_second": round(count / sum(self.theirs.seconds), 3),
            "ours_seconds": [round(value, 2) for value in self.ours.seconds],
            "lm_eval_block_seconds": [round(value, 2) for value in self.theirs.seconds],
            "equal_texts": sum(one == other for one, other in zip(self.ours.texts, self.theirs.texts, strict=True)),
            "equal_answers": sum(one == other for one, other in zip(*first, strict=True)),
            "f1_ours": round(mean_f1(self.questions, first[0]), 6),
            "f1_difference": round(mean_f1(self.questions, first[0]) - mean_f1(self.questions, first[1]), 6),
            "ratio": round(self.ratio, 2), "cpu_ratio": round(self.cpu_ratio, 2)}


def mean_f1(questions: Sequence[Question], answers: Sequence[str]) -> float:
    """Official CoQA F1 over turns, 0..1."""
    from llamaquant.coqa.prompt import golds_for_turn
    from llamaquant.coqa.score import f1_em_official

    return statistics.mean(f1_em_official(answer, golds_for_turn(story, index))[0]
                           for (story, index), answer in zip(questions, answers, strict=True))


def ask(lm: Any, questions: Sequence[Question], until: str, max_gen_toks: int) -> Side:
    """Answers of a backend, and its seconds from prompts to texts."""
    from lm_eval.api.instance import Instance

    from llamaquant.coqa.prompt import prompt_for_turn

    requests = [Instance("generate_until", {}, (prompt_for_turn(story, index),
                                                {"until": [until], "max_gen_toks": max_gen_toks}), number)
                for number, (story, index) in enumerate(questions)]
    start, cpu_start = time.perf_counter(), time.process_time()
    texts = lm.generate_until(requests, disable_tqdm=True)
    return Side(texts, [time.perf_counter() - start], [time.process_time() - cpu_start])


def questions_of(stories: Sequence[Story]) -> list[Question]:
    return [(story, index) for story in stories for index in range(len(story["questions"]))]


def best_batch_size(make: Any, stories: Sequence[Story], sizes: Sequence[int], max_gen_toks: int) -> int:
    """The fixed batch size at which lm-eval answers the probe stories fastest; one that runs out of memory loses."""
    import torch

    if len(sizes) == 1:
        return sizes[0]
    seconds: dict[int, float] = {}
    for size in sizes:
        try:
            seconds[size] = ask(make(size), questions_of(stories), "\n", max_gen_toks).seconds[0]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        print(f"probe: lm-eval batch size {size}: {seconds[size]:.1f} s for {len(questions_of(stories))} questions")
    return min(seconds, key=lambda size: seconds[size])


def compare(rule: str, ours: Any, theirs: Any, stories: Sequence[Story], rounds: int, max_gen_toks: int) -> Comparison:
    """Passes of ours over all stories, with lm-eval's blocks between them."""
    until = "\n" if rule == "newline" else SHIPPED
    questions = questions_of(stories)
    ours.first_line = rule == "shipped"
    own, other = ask(ours, questions, until, max_gen_toks), Side([], [], [])
    for number in range(rounds):
        block = questions_of(stories[number * len(stories) // rounds: (number + 1) * len(stories) // rounds])
        if not block:
            continue
        part = ask(theirs, block, until, max_gen_toks)
        other.texts.extend(part.texts)
        again = ask(ours, questions, until, max_gen_toks)
        for side, new in ((other, part), (own, again)):
            side.seconds.extend(new.seconds)
            side.cpu_seconds.extend(new.cpu_seconds)
        if again.texts != own.texts:
            print("note: ours differs between passes", file=sys.stderr)
    return Comparison(rule, int(theirs.batch_size), questions, own, other)


def disagreements(reference: Any, make: Any, sizes: Sequence[int], stories: Sequence[Story], ours: Any,
                  max_gen_toks: int) -> dict[str, Any]:
    """How often lm-eval disagrees with itself at other batch sizes, beside how often ours disagrees with it."""
    questions = questions_of(stories)
    ours.first_line = False
    base = ask(reference, questions, "\n", max_gen_toks).texts
    own = ask(ours, questions, "\n", max_gen_toks).texts
    found = {"questions": len(questions), "reference_batch_size": int(reference.batch_size),
             "ours": sum(one != other for one, other in zip(own, base, strict=True))}
    for size in sizes:
        if size != int(reference.batch_size):
            other = ask(make(size), questions, "\n", max_gen_toks).texts
            found[f"lm_eval_batch_size_{size}"] = sum(a != b for a, b in zip(other, base, strict=True))
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, a checkpoint folder or a hub id")
    parser.add_argument("--dataset", default="demo", help="demo, coqa or a file in the official CoQA layout")
    parser.add_argument("--limit", type=int, default=20, help="stories; every turn of them is asked")
    parser.add_argument("--shipped-limit", type=int, help="stories for the `shipped` rule (0: skip it; default: limit)")
    parser.add_argument("--dtype", default="", choices=("", "fp32", "bf16", "fp16"), help="fp32 on CPU, bf16 on CUDA")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-sizes", default="", help="lm-eval's, comma-separated; the fastest one is used")
    parser.add_argument("--probe-stories", type=int, help="stories on which batch sizes are tried (CPU: 1, CUDA: 40)")
    parser.add_argument("--rounds", type=int, default=2, help="blocks of lm-eval, each between two passes of ours")
    parser.add_argument("--max-gen-toks", type=int, default=256, help="lm-eval's default is 256")
    parser.add_argument("--self-check", type=int, default=0, metavar="STORIES",
                        help="count disagreements of lm-eval with itself at the other batch sizes on so many stories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if os.path.isdir(args.model) else "0")
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    from llamaquant.evaluators.shared_prefix_lm import SharedPrefixLM
    from llamaquant.model import resolve_device, torch_dtype
    from llamaquant.sources import resolve_model, resolve_stories

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = resolve_device(args.device)
    dtype = args.dtype or ("bf16" if device.startswith("cuda") else "fp32")
    folder = resolve_model(args.model, "", "pretrained").folder
    stories = resolve_stories(args.dataset, "", args.limit, args.seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype(dtype)).to(device).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes = [int(size) for size in (args.batch_sizes or ("256,1024" if device.startswith("cuda") else "1,4"))
             .split(",")]

    def stock(size: int) -> Any:
        return HFLM(model, tokenizer=tokenizer, batch_size=size)

    ours = SharedPrefixLM(model, tokenizer=tokenizer)
    for lm in (ours, stock(sizes[0])):  # warm-up: kernels, allocator, lazy imports
        ask(lm, questions_of(stories[:1])[:3], "\n", 8)
    probe = stories[:args.probe_stories or (1 if device == "cpu" else 40)]
    theirs = stock(best_batch_size(stock, probe, sizes, args.max_gen_toks))
    shipped = args.limit if args.shipped_limit is None else args.shipped_limit
    results: list[dict[str, Any]] = [{
        "model": str(args.model), "dataset": str(args.dataset), "stories": len(stories), "dtype": dtype,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu, {torch.get_num_threads()}"
        " threads", "torch": torch.__version__, "transformers": transformers.__version__}]
    print(json.dumps(results[0]))
    headline = compare("newline", ours, theirs, stories, args.rounds, args.max_gen_toks)
    results.append(headline.summary())
    print(json.dumps(results[-1]))
    if shipped:
        results.append(compare("shipped", ours, theirs, stories[:shipped], 1, args.max_gen_toks).summary())
        print(json.dumps(results[-1]))
    if args.self_check:
        results.append(disagreements(theirs, stock, sizes, stories[:args.self_check], ours, args.max_gen_toks))
        print(json.dumps(results[-1]))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    print(f"ratio {headline.ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
