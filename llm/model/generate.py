"""Text from a model, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llm.model.decoder import Decoder, Past
from llm.model.gpt2 import Gpt2


@torch.inference_mode()
def generate(
    model: Decoder | Gpt2,
    prompt_ids: Sequence[int],
    max_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
) -> list[int]:
    """The tokens that follow the prompt, without the stop token that ended them.

    Keys and values of what was read are kept, so that a token costs one forward pass over one position. The model
    never sees more than its `max_positions`: a longer prompt loses its beginning, and writing ends where they end.
    Temperature 0 is greedy; `top_k` 0 samples from the whole vocabulary. Same seed, same text.

    Source: top-k sampling, https://arxiv.org/abs/1805.04833, section 5.4.
    """
    generator = torch.Generator().manual_seed(seed)
    device, limit = model.embedding.weight.device, model.config.max_positions
    read = list(prompt_ids)[-(limit - 1) :]
    past: Past | None = None
    unread, written = read, list[int]()
    while len(written) < min(max_tokens, limit - len(read)):
        logits_BTV, past = model(torch.tensor([unread], device=device), past=past)
        token = choose(logits_BTV[0, -1].float().cpu(), temperature, top_k, generator)
        if token in stop_ids:
            break
        written.append(token)
        unread = [token]
    return written


def choose(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """The likeliest token, or one drawn from softmax(logits / temperature) over the `top_k` likeliest."""
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k:
        least = logits_V.topk(min(top_k, len(logits_V))).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    shares_V = torch.softmax(logits_V / temperature, dim=-1)
    return int(torch.multinomial(shares_V, 1, generator=generator))
