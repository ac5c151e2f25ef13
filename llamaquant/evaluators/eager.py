"""Plain forward passes that memory and latency measure: random ids, one prefill, one greedy decode step."""

from __future__ import annotations

from typing import Any


def prefill(model: Any, ids: Any) -> tuple[Any, Any]:
    """One forward over ids [B, T]; the greedy next token [B, 1] and the filled cache."""
    from transformers import DynamicCache

    out = model(input_ids=ids, past_key_values=DynamicCache(config=model.config), use_cache=True, logits_to_keep=1)
    return out.logits[:, -1:].argmax(-1), out.past_key_values


def greedy_step(model: Any, token: Any, cache: Any) -> Any:
    """One decode step from token [B, 1]; the next token [B, 1]. The cache grows by one position."""
    return model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


def random_ids(batch: int, tokens: int, vocabulary: int, seed: int, device: Any) -> Any:
    """Seeded token ids [batch, tokens]; costs do not depend on the text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (batch, tokens), generator=generator).to(device)
