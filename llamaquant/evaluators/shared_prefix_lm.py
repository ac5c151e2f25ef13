"""lm-eval's Hugging Face backend with shared-prefix generation: the harness keeps its tasks, scores and logs.

Requests of one `generate_until` call that start alike are prefilled once. lm-eval's own `coqa` (one question per
story) gains batching without padding; the all-turns task in `llamaquant/evaluators/tasks` gains the shared prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from llamaquant.errors import BackendError
from llamaquant.evaluators.generate import GenerationStats, check_greedy, generate
from llamaquant.evaluators.prefix_plan import Turn
from llamaquant.evaluators.prefix_stop import StopRule
from llamaquant.evaluators.prefix_tokens import encode_prompts

TASKS = Path(__file__).parent / "tasks"
"""Folder for lm-eval's `include_path`: holds the all-turns task."""

GREEDY_FIELDS = {"until", "max_gen_toks", "do_sample", "temperature"}


@register_model("llamaquant-shared-prefix")
class SharedPrefixLM(HFLM):  # type: ignore[misc]
    """`HFLM` whose greedy `generate_until` shares prefixes; every other request goes to `HFLM` itself.

    Args:
        pretrained: a model name, folder or loaded transformers model, as for HFLM.
        first_line: end an answer with its first line, which is all that `coqa` scores. Off, the text up to the stop
            string is generated and returned, as HFLM returns it.
        budget_bytes: memory of one batch's KV caches (default: a share of what is free).
        kwargs: HFLM's own arguments (tokenizer, max_length, dtype, ...). `batch_size` is used by HFLM's own paths.

    After a call, `generation_stats` holds one record per group of requests, and `requests_not_shared` counts the
    requests that HFLM answered itself (sampling, beams, penalties).
    """

    def __init__(self, pretrained: Any, first_line: bool = False, budget_bytes: int | None = None,
                 **kwargs: Any) -> None:
        super().__init__(pretrained, **kwargs)
        if self.backend != "causal":
            raise BackendError(f"shared-prefix generation needs a causal model, got {self.backend}: use lm-eval's hf")
        self.first_line = first_line
        self.budget_bytes = budget_bytes
        self.generation_stats: list[GenerationStats] = []
        self.requests_not_shared = 0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests; requests are grouped by their generation arguments."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        answers = [""] * len(requests)
        for indices in groups.values():
            chosen = [requests[index] for index in indices]
            rule = self._rule(chosen[0].args[1])
            texts = (self._share(chosen, rule) if rule is not None
                     else super().generate_until(chosen, disable_tqdm=disable_tqdm))
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
            if rule is None:
                self.requests_not_shared += len(indices)
        return answers

    def _rule(self, gen_kwargs: dict[str, Any]) -> StopRule | None:
        """The stop rule of greedy requests; None where HFLM must answer itself."""
        kwargs = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        if set(kwargs) - GREEDY_FIELDS or kwargs["do_sample"] or self.think_end_token is not None:
            return None
        try:
            check_greedy(self.model)
        except BackendError:
            return None
        until = handle_stop_sequences(list(kwargs["until"]), eos=None)
        return StopRule(tuple(until), self.first_line, kwargs["max_gen_toks"])

    def _share(self, requests: Sequence[Instance], rule: StopRule) -> list[str]:
        contexts = [request.args[0] for request in requests]
        prompts = encode_prompts(self.tokenizer, contexts, self.max_length - rule.max_new_tokens,
                                 self.add_bos_token, bool(self.truncation))
        turns = [Turn(f"{request.task_name}:{request.doc_id}:{number}", prompt)
                 for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True))]
        result = generate(self.model, self.tokenizer, turns, rule, budget_bytes=self.budget_bytes)
        self.generation_stats.append(result.stats)
        for request, text in zip(requests, result.texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return list(result.texts)
