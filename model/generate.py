"""Text generation with a key/value cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from model.attention import KVCache
from model.detokenize import TextStream
from model.heads import CausalLM

_GREEDY = 1e-5  # divided by less, scores leave fp32


class Sampling(TypedDict, total=False):
    """How the next token is drawn; each limit narrows what the one before left.

    temperature: 0, or below 1e-5, takes the likeliest token. top_k: keep the k likeliest. top_p:
    keep the fewest tokens whose probabilities reach p (Holtzman et al. 2020). min_p: keep the
    tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024). None: no limit.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None


def generate(
    net: CausalLM,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    seed: int | None = None,
    is_done: Callable[[int, int], bool] | None = None,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Continue each row of (B, T) tokens; returns (B, T + new). Arguments as in `stream`."""
    columns = stream(
        net,
        input_ids,
        max_new_tokens,
        attention_mask=attention_mask,
        seed=seed,
        is_done=is_done,
        **sampling,
    )
    return torch.cat((input_ids, torch.stack(list(columns), dim=1)), dim=1)


def stream(
    net: CausalLM,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    seed: int | None = None,
    is_done: Callable[[int, int], bool] | None = None,
    ends_early: bool = True,
    **sampling: Unpack[Sampling],
) -> Iterator[Tensor]:
    """Yield the next token (B,) of each row of (B, T) tokens, at most `max_new_tokens` times.

    attention_mask: (B, T), 0 for padding, on the left. seed: same seed, same text. A row ends at
    the config's eos token, or when `is_done(row, token)` says so after a token that is no eos; it
    is then filled with pad (or eos) until every row has ended. ends_early: False goes on after
    that, for ranks that must make as many forward passes as each other whatever each of them drew.
    The rest as in `Sampling`. Raises `ValueError` at once for arguments out of range.
    """
    _check_texts(net, input_ids, max_new_tokens, attention_mask)
    _check_sampling(**sampling)
    ends = _Ends(is_done, ends_early)
    return _stream(net, input_ids, max_new_tokens, attention_mask, seed, ends, sampling)


class _Ends(NamedTuple):
    is_done: Callable[[int, int], bool] | None  # of a row, beside its eos
    early: bool  # once every row has ended


def _stream(
    net: CausalLM,
    input_ids: Tensor,
    max_new_tokens: int,
    mask: Tensor | None,
    seed: int | None,
    ends: _Ends,
    sampling: Sampling,
) -> Iterator[Tensor]:
    device, (batch_size, length) = input_ids.device, input_ids.shape
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    eos = torch.tensor(net.config.eos_token_ids, device=device, dtype=torch.long)
    pad = net.config.pad_token_id
    filler = pad if pad is not None else next(iter(net.config.eos_token_ids), 0)
    dtype = net.trunk.token_embedding.weight.dtype
    # The last token is returned and never fed.
    cache = KVCache(net.config, batch_size, length + max_new_tokens - 1, device, dtype)
    has_ended = torch.zeros(batch_size, dtype=torch.bool, device=device)
    was_training, fed = net.training, input_ids
    net.eval()
    try:
        for _ in range(max_new_tokens):
            # Not around the loop: between two tokens the caller's code runs.
            with torch.no_grad():
                positions = None if mask is None else _positions(mask)[:, -fed.shape[1] :]
                logits = net(fed, mask, positions, cache=cache).logits[:, -1]  # (B, V)
            chosen = sample(logits, generator, **sampling)
            chosen = chosen.masked_fill(has_ended, filler)
            is_eos = torch.isin(chosen, eos)
            if ends.is_done is not None:
                is_speaking = ~(has_ended | is_eos)
                for row in is_speaking.nonzero()[:, 0].tolist():
                    has_ended[row] = ends.is_done(row, int(chosen[row]))
            has_ended = has_ended | is_eos
            yield chosen
            if ends.early and has_ended.all():
                break
            fed = chosen[:, None]
            if mask is not None:
                mask = torch.cat((mask, mask.new_ones(batch_size, 1)), dim=1)
    finally:
        net.train(was_training)


def stream_texts(
    net: CausalLM,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    seed: int | None = None,
    **sampling: Unpack[Sampling],
) -> Iterator[tuple[int, str]]:
    """Continue every prompt at once; yield (number of the prompt, more of its text).

    tokenizer: a `tokenizers.Tokenizer`. stop: strings that end a text and are no part of it. A
    piece is whole characters and never taken back. The rest as in `stream`; `ValueError` also for
    an empty prompt of a model without a begin-of-text token and for tokens that it does not have.
    """
    rows = [_encode(net, tokenizer, prompt) for prompt in prompts]
    texts = [TextStream(tokenizer.decode, row, stop) for row in rows]
    input_ids, mask = pad_left(rows, net.trunk.token_embedding.weight.device)
    columns = stream(
        net,
        input_ids,
        max_new_tokens,
        attention_mask=mask,
        seed=seed,
        is_done=lambda row, token: texts[row].feed(token),
        **sampling,
    )
    return _pieces(columns, texts)


def _pieces(columns: Iterator[Tensor], texts: list[TextStream]) -> Iterator[tuple[int, str]]:
    for _ in columns:
        yield from ((i, piece) for i, text in enumerate(texts) if (piece := text.take()))
    yield from ((i, piece) for i, text in enumerate(texts) if (piece := text.finish()))


def generate_texts(
    net: CausalLM,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    seed: int | None = None,
    **sampling: Unpack[Sampling],
) -> list[str]:
    """Continue every prompt at once; returns the new text of each. As in `stream_texts`."""
    found = [""] * len(prompts)
    for row, piece in stream_texts(
        net, tokenizer, prompts, max_new_tokens, stop=stop, seed=seed, **sampling
    ):
        found[row] += piece
    return found


def sample(
    logits: Tensor,
    generator: torch.Generator | None = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Choose one token (B,) from each row of logits (B, V); see `Sampling`."""
    if temperature < _GREEDY:
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
    probability = scores.softmax(-1)
    if min_p is not None:
        likeliest = probability.amax(-1, keepdim=True)
        # multinomial takes weights: what is left need not sum to one.
        probability = probability.masked_fill(probability < min_p * likeliest, 0.0)
    return torch.multinomial(probability, 1, generator=generator)[:, 0]


def _positions(mask: Tensor) -> Tensor:
    """Count (B, S) positions from each row's first real token."""
    return (mask.to(torch.long).cumsum(-1) - 1).clamp(min=0)


def _encode(net: CausalLM, tokenizer: Any, prompt: str) -> list[int]:
    ids: list[int] = tokenizer.encode(prompt).ids
    if not ids and net.config.bos_token_id is not None:
        ids = [net.config.bos_token_id]
    if not ids:
        raise ValueError("prompt: got an empty text, and the model has no begin-of-text token")
    if max(ids) >= net.config.vocab_size:
        raise ValueError(
            f"prompt: got token {max(ids)}, expected less than vocab_size={net.config.vocab_size};"
            " the tokenizer is another model's"
        )
    return ids


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Put rows into one (B, T) tensor; returns it and its mask, None where nothing is padded."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return ids, None
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return ids, torch.tensor(mask, device=device)


def _check_sampling(
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> None:
    if not temperature >= 0:  # NaN too
        raise ValueError(f"temperature: got {temperature}, expected 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}, expected 1 or more; leave it out for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, expected 0 < top_p ≤ 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p: got {min_p}, expected 0 ≤ min_p ≤ 1")


def _check_texts(
    net: CausalLM, input_ids: Tensor, max_new_tokens: int, attention_mask: Tensor | None
) -> None:
    if not net.config.causal:
        raise ValueError(
            f"net: {net.config.family} sees both sides of a text, expected a causal model"
        )
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids: got shape {tuple(input_ids.shape)}, expected (B, T) with T ≥ 1; an empty"
            " prompt needs a begin-of-text token"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: got {max_new_tokens}, expected 1 or more")
    length = input_ids.shape[1]
    # The last token is returned, never fed.
    room = net.config.max_seq_len + 1 - length if net.config.positions == "learned" else None
    if room is not None and room < 1:
        raise ValueError(
            f"prompt: got {length} tokens, expected at most {net.config.max_seq_len}: positions are"
            " learned"
        )
    if room is not None and max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens: got {max_new_tokens} after a prompt of {length} tokens, expected at"
            f" most {room}: positions are learned"
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError("attention_mask: got padding on the right, expected it on the left")
