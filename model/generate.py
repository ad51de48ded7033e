"""Text generation with a key/value cache."""

import torch
from torch import Tensor

from model.attention import KVCache
from model.heads import CausalLM


def generate(
    net: CausalLM,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Tensor:
    """Continue each row of (B, T) tokens by at most `max_new_tokens`; returns (B, T + new).

    attention_mask: (B, T), 0 for padding, on the left. temperature: 0 takes the likeliest token.
    top_k: keep the k likeliest. top_p: keep the fewest tokens whose probabilities reach p.
    seed: same seed, same text. A row ends at the config's eos token and is then filled with pad (or
    eos) until every row has ended. Raises `ValueError` for options out of range.
    """
    _check_texts(net, input_ids, max_new_tokens, attention_mask)
    _check_sampling(temperature, top_k, top_p)
    generator = None
    if seed is not None:
        generator = torch.Generator(input_ids.device).manual_seed(seed)
    eos = torch.tensor(net.config.eos_token_ids, device=input_ids.device, dtype=torch.long)
    pad = net.config.pad_token_id
    filler = pad if pad is not None else next(iter(net.config.eos_token_ids), 0)
    batch_size, length = input_ids.shape
    dtype = net.trunk.token_embedding.weight.dtype
    cache = KVCache(net.config, batch_size, length + max_new_tokens, input_ids.device, dtype)
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            tokens, mask = input_ids, attention_mask
            has_ended = torch.zeros(batch_size, dtype=torch.bool, device=input_ids.device)
            fed = input_ids
            for _ in range(max_new_tokens):
                positions = None if mask is None else _positions(mask)[:, -fed.shape[1] :]
                logits = net(fed, mask, positions, cache=cache).logits[:, -1]  # (B, V)
                chosen = sample(logits, temperature, top_k, top_p, generator)
                chosen = chosen.masked_fill(has_ended, filler)
                fed = chosen[:, None]
                tokens = torch.cat((tokens, fed), dim=1)
                if mask is not None:
                    mask = torch.cat((mask, mask.new_ones(batch_size, 1)), dim=1)
                has_ended |= torch.isin(chosen, eos)
                if has_ended.all():
                    break
    finally:
        net.train(was_training)
    return tokens


def sample(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose one token (B,) from each row of logits (B, V)."""
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    if top_k is not None:
        smallest = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if top_p is not None:
        ordered, order = scores.sort(descending=True)
        probability = ordered.softmax(-1)
        # What the likelier tokens hold already: the first token is always kept.
        before = probability.cumsum(-1) - probability
        is_beyond = before >= top_p
        scores = scores.masked_fill(is_beyond.scatter(-1, order, is_beyond), -torch.inf)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


def _positions(mask: Tensor) -> Tensor:
    """Count (B, S) positions from each row's first real token."""
    return (mask.to(torch.long).cumsum(-1) - 1).clamp(min=0)


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not temperature >= 0:  # NaN too
        raise ValueError(f"temperature: got {temperature}, expected 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}, expected 1 or more; leave it out for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, expected 0 < top_p ≤ 1")


def _check_texts(
    net: CausalLM, input_ids: Tensor, max_new_tokens: int, attention_mask: Tensor | None
) -> None:
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids: got shape {tuple(input_ids.shape)}, expected (B, T) with T ≥ 1; an empty"
            " prompt needs a begin-of-text token"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: got {max_new_tokens}, expected 1 or more")
    last = input_ids.shape[1] + max_new_tokens - 1  # the last token is returned, never fed
    if net.config.positions == "learned" and last > net.config.max_seq_len:
        raise ValueError(
            f"max_new_tokens: got {max_new_tokens} after a prompt of {input_ids.shape[1]} tokens,"
            f" expected at most {net.config.max_seq_len + 1 - input_ids.shape[1]}: positions are"
            " learned"
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError("attention_mask: got padding on the right, expected it on the left")
