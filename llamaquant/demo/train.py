"""Trains the demo model from nothing: tokenizer, stories, a small Llama, its scores and its model card."""

from __future__ import annotations

import math
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaquant.demo.card import model_card
from llamaquant.demo.corpus import Corpus, batches, build_corpus
from llamaquant.demo.tokenizer import BOS, CONTEXT_TOKENS, EOS, PAD, save_tokenizer, train_tokenizer
from llamaquant.demo.world import generate_stories
from llamaquant.errors import ConfigError, TrialError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

OnMetrics = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class ModelShape:
    """Shape of the demo's Llama; every linear is a multiple of 128 wide on both sides, so that all group sizes fit."""

    hidden_size: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    ffn_size: int = 128
    vocab_size: int = 2048

    def __post_init__(self) -> None:
        head_dim = self.hidden_size // max(1, self.heads)
        widths = (self.hidden_size, self.ffn_size, self.kv_heads * head_dim, self.heads * head_dim)
        if self.layers < 1 or self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"layers, heads and kv_heads must be positive, and kv_heads divide heads, got {self}")
        if any(width < 128 or width % 128 for width in widths):
            raise ConfigError(f"every linear width must be a multiple of 128, got {sorted(set(widths))} from {self}")
        if self.vocab_size < 512:
            raise ConfigError(f"vocab_size must be at least 512, got {self.vocab_size}: bytes and words need room")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The same config on the same device and library versions gives the same weights."""

    shape: ModelShape = field(default_factory=ModelShape)
    stories: int = 400_000  # training stories, generated before the first step
    steps: int = 9000
    batch_size: int = 128  # dialogues per step
    learning_rate: float = 3e-3  # peak of the linear warm-up; falls linearly to 0
    warmup_steps: int = 200
    story_weight: float = 0.0  # weight of the loss on tokens outside the answers; answers have weight 1
    seed: int = 0
    device: str = "auto"  # auto | cuda | cpu
    workers: int = 2  # processes that generate stories
    compile: bool = False  # torch.compile: faster on CUDA after about a minute
    eval_every: int = 1000  # steps between evaluations; 0: at the end only
    eval_stories: int = 600
    max_minutes: float | None = None  # ends the schedule early; the number of steps then depends on the machine
    commit: str = ""  # git commit for the model card; empty: ask git

    def __post_init__(self) -> None:
        positive = ("stories", "steps", "batch_size", "warmup_steps", "workers", "eval_stories")
        bad = [f"{name}={getattr(self, name)}" for name in positive if getattr(self, name) < 1]
        if bad:
            raise ConfigError(f"these must be at least 1, got {', '.join(bad)}: raise them")
        if not 0 < self.learning_rate < 1 or not 0 <= self.story_weight <= 1:
            raise ConfigError(
                f"learning_rate must be in (0, 1) and story_weight in [0, 1], got {self.learning_rate}, {self.story_weight}: correct them"
            )
        if self.device not in ("auto", "cuda", "cpu"):
            raise ConfigError(f"device must be auto, cuda or cpu, got {self.device!r}: name one of them")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ConfigError(f"max_minutes must be positive or absent, got {self.max_minutes}: raise or drop it")


@dataclass(frozen=True)
class TrainResult:
    """What a training run gave; F1 and EM in [0, 1] on the evaluation split, the model in bf16."""

    folder: Path
    steps: int
    train_loss: float  # nats per answer token, mean of the last 100 steps
    f1_last_turn: float
    em_last_turn: float
    f1_all_turns: float
    parameters: int
    seconds: float
    capacity: dict[str, float]  # last-turn F1 of the round-to-nearest simulation, see capacity.py


def train_demo(config: TrainConfig, out: Path, on_metrics: OnMetrics | None = None, corpus: Corpus | None = None) -> TrainResult:
    """Train, evaluate and write a checkpoint folder (weights, config, tokenizer, model card) at `out`.

    `on_metrics(step, values)` hears the loss every 100 steps and the scores of every evaluation. `corpus`: ready
    training data of this config, where several runs share it. Raises TrialError where the loss is no number.
    """
    import torch

    begin = time.perf_counter()
    report = on_metrics or (lambda step, values: None)
    tokenizer = train_tokenizer(config.shape.vocab_size, seed=config.seed)
    save_tokenizer(tokenizer, out)
    corpus = corpus or build_corpus(tokenizer, config.stories, config.seed, config.workers)
    device = _device(config.device)
    torch.manual_seed(config.seed)
    model = build_model(config.shape).to(device)
    steps, loss = _optimise(model, corpus, config, device, report, out)
    model = _save(model, out)
    scores, capacity = _final_scores(model, out, config)
    report(steps, scores | {f"f1_{name}": value for name, value in capacity.items()})
    result = TrainResult(
        folder=out, steps=steps, train_loss=loss, capacity=capacity, seconds=time.perf_counter() - begin,
        parameters=sum(p.numel() for p in model.parameters()), **scores,
    )  # fmt: skip
    card = model_card(asdict(config), asdict(result), config.commit or _git_commit(), _device_name(device))
    (out / "README.md").write_text(card, encoding="utf-8")
    return result


def build_model(shape: ModelShape) -> LlamaForCausalLM:
    """A randomly initialised Llama in float32 with tied embeddings."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(shape))


def llama_config(shape: ModelShape) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=_SPECIAL[PAD],
        bos_token_id=_SPECIAL[BOS],
        eos_token_id=_SPECIAL[EOS],
        attn_implementation="sdpa",
    )


_SPECIAL = {PAD: 0, BOS: 1, EOS: 2}  # the order in which the tokenizer's trainer adds them
_PADS = (288, 384, 512)  # tokens per dialogue in a batch: few shapes, so that compilation happens rarely


def _optimise(model: Any, corpus: Corpus, config: TrainConfig, device: torch.device, report: OnMetrics, out: Path) -> tuple[int, float]:
    """AdamW without weight decay (large weights are what quantization finds hard); returns (steps, mean last loss)."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda"
    )
    loss_of = _LossFunction(model, corpus, config, device)
    loss_of.warm_up()
    stream = batches(corpus.lengths, config.batch_size, _PADS, config.seed)
    recent: deque[torch.Tensor] = deque(maxlen=100)
    begin, progress, step, mean = time.perf_counter(), 0.0, 0, math.nan
    while progress < 1.0:
        rate = config.learning_rate * min(1.0, (step + 1) / config.warmup_steps) * (1.0 - progress)
        recent.append(_step(model, optimizer, rate, loss_of(*next(stream))))
        step += 1
        seconds = time.perf_counter() - begin
        progress = max(step / config.steps, seconds / 60 / config.max_minutes if config.max_minutes else 0.0)
        if step % 100 == 0 or progress >= 1.0:
            mean = float(torch.stack(list(recent)).mean())
            if not math.isfinite(mean):
                raise TrialError(f"the loss must stay finite, got {mean} at step {step}: lower the learning rate")
            report(step, {"train_loss": mean, "learning_rate": rate, "seconds": seconds})
        if config.eval_every and step % config.eval_every == 0 and progress < 1.0:
            report(step, {"f1_last_turn": _quick_f1(model, out, min(200, config.eval_stories))})
    return step, mean


def _step(model: Any, optimizer: Any, rate: float, loss: torch.Tensor) -> torch.Tensor:
    """One update at learning rate `rate`; returns the loss without its graph."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


class _LossFunction:
    """Mean cross-entropy of a batch, with the corpus on the device; answers weigh 1, other tokens `story_weight`."""

    def __init__(self, model: Any, corpus: Corpus, config: TrainConfig, device: torch.device) -> None:
        import numpy as np
        import torch

        self.device, self.model, self.story_weight = device, model, config.story_weight
        self.tokens = torch.from_numpy(np.asarray(corpus.tokens).astype(np.int16)).to(device)  # [N]
        self.is_answer = torch.from_numpy(np.asarray(corpus.is_answer)).to(device)  # [N]
        self.starts = torch.from_numpy(np.asarray(corpus.starts)).to(device)  # [stories + 1]
        self.compile, self.batch_size = config.compile, config.batch_size
        self.backbone = torch.compile(model.model, dynamic=False) if config.compile else model.model

    def warm_up(self) -> None:
        """Compile for every padded length before the clock of the schedule starts."""
        import numpy as np

        if self.compile:
            for length in _PADS[:2]:
                self(length, np.arange(self.batch_size)).backward()
            self.model.zero_grad(set_to_none=True)

    def __call__(self, length: int, stories: Any) -> torch.Tensor:
        import torch

        chosen = torch.from_numpy(stories).to(self.device)
        positions = self.starts[chosen, None] + torch.arange(length, device=self.device)  # [B, T]
        inside = positions < self.starts[chosen + 1, None]
        positions = positions.clamp(max=self.tokens.numel() - 1)
        ids = torch.where(inside, self.tokens[positions].long(), 0)  # [B, T]
        answers = self.is_answer[positions] & inside
        weights = torch.where(answers, 1.0, self.story_weight) * inside
        # padding is on the right: causal attention alone keeps it away from real tokens
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, H]
            wanted = weights[:, 1:] > 0
            logits = self.model.lm_head(hidden[wanted])  # [targets, V]
        losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
        kept = weights[:, 1:][wanted]
        return (losses * kept).sum() / kept.sum()


def _save(model: Any, out: Path) -> Any:
    import torch
    from transformers import GenerationConfig

    model = model.to(torch.bfloat16).eval()
    model.config.dtype = "bfloat16"
    model.generation_config = GenerationConfig(bos_token_id=_SPECIAL[BOS], eos_token_id=_SPECIAL[EOS], pad_token_id=_SPECIAL[PAD])
    model.save_pretrained(out)
    return model


def _final_scores(model: Any, out: Path, config: TrainConfig) -> tuple[dict[str, float], dict[str, float]]:
    from transformers import AutoTokenizer

    from llamaquant.demo.capacity import capacity_curve
    from llamaquant.demo.evaluate import evaluate

    tokenizer = AutoTokenizer.from_pretrained(out)
    stories = generate_stories("evaluation", config.eval_stories, config.seed)
    last = evaluate(model, tokenizer, stories)
    every = evaluate(model, tokenizer, stories, turns="all")
    scores = {"f1_last_turn": last.f1, "em_last_turn": last.em, "f1_all_turns": every.f1_official}
    return scores, capacity_curve(model, tokenizer, stories)


def _quick_f1(model: Any, out: Path, stories: int) -> float:
    from transformers import AutoTokenizer

    from llamaquant.demo.evaluate import evaluate

    model.eval()
    score = evaluate(model, AutoTokenizer.from_pretrained(out), generate_stories("calibration", stories))
    model.train()
    return score.f1


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda needs a CUDA device, got none: use device=cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
