"""The model card that lies beside the demo weights: every number comes from the run that made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [coqa, llama, quantization, demo]
---

# llamaquant demo

A LlamaForCausalLM of {millions:.2f} M parameters (hidden {hidden_size}, {layers} layers, {heads} heads, {kv_heads} key/value
heads, FFN {ffn_size}, vocabulary {vocab_size}, tied embeddings, bfloat16) that answers questions about the synthetic
stories of `llamaquant.demo`. It was trained from nothing on those stories and knows nothing else. It is kept at the
edge of its capacity on purpose, so that fewer bits cost it something.

## Training

| | |
| --- | --- |
| data | {stories} generated stories, split `train`, seed {seed} |
| prompt layout | the task `coqa` of lm-eval-harness |
| steps | {steps} of {batch_size} dialogues, AdamW, peak rate {learning_rate}, no weight decay |
| final training loss | {train_loss:.4f} nats per answer token |
| device | {device} |
| wall time | {minutes:.1f} minutes, evaluation included |
| commit | {commit} |

## Scores on the evaluation split ({eval_stories} stories, greedy)

| score | value |
| --- | --- |
| F1, last turn (as lm-eval counts) | {f1_last_turn:.4f} |
| exact match, last turn | {em_last_turn:.4f} |
| F1, all turns (official count) | {f1_all_turns:.4f} |

Last-turn F1 after a round-to-nearest simulation of the block linears (asymmetric, no method of this project):

| bits | group 128 | group 32 |
| --- | --- | --- |
{curve}

Names, things and places are invented; no person, book or data set was used. License: MIT, as the project.
"""


def model_card(config: Mapping[str, Any], result: Mapping[str, Any], commit: str, device: str) -> str:
    """Markdown card of one training run; `config` and `result` are the fields of TrainConfig and TrainResult."""
    curve = result["capacity"]
    rows = [f"| {bits} | {curve[f'{bits}bit_g128']:.4f} | {curve[f'{bits}bit_g32']:.4f} |" for bits in (8, 4, 3, 2)]
    derived = {"millions": result["parameters"] / 1e6, "minutes": result["seconds"] / 60, "curve": "\n".join(rows)}
    values = {**config, **config["shape"], **result, **derived, "commit": commit, "device": device}
    return _TEXT.format_map(values)
