"""The embedded default: a generator of CoQA-like stories and a small Llama trained on them."""

from pathlib import Path

from llamaquant.demo.world import SPLITS, Split
from llamaquant.demo.world import generate_stories as demo_stories

MODEL_PATH = Path(__file__).parent / "weights"
"""Folder of the demo checkpoint: a plain transformers LlamaForCausalLM with its tokenizer."""

__all__ = ["MODEL_PATH", "SPLITS", "Split", "demo_stories"]
