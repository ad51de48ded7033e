"""Texts whose embeddings are moved to where the loss is greater: FGM, PGD, FreeLB.

The moves are found by looking only: their gradients are taken with respect to the embeddings, and
the parameters get none. What is learned from is then one forward pass over all versions of the
batch, so that DDP and ZeRO see one forward and one backward pass, as always.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Loss = Callable[[Callable[..., Any], Batch], Tensor]  # from a model and a batch, a mean loss

_TINY = 1e-12


class Ascent(NamedTuple):
    """How far the embeddings of a text may be moved, and how the place is found.

    Lengths are L2 norms over all tokens of a row.
    """

    kind: str  # fgm, pgd or freelb
    epsilon: float  # greatest length, as a share of the length of the row's embeddings
    steps: int = 1
    step_size: float = 1.0  # length of a step, as a share of the greatest length


def adversarial_loss(
    ascent: Ascent, loss: Loss, forward: Callable[..., Any], module: nn.Module, batch: Batch
) -> Tensor:
    """Mean loss over the versions of a batch.

    fgm, pgd: the batch as it is and where it was moved to, half each (Goodfellow et al. 2015, §6;
    Miyato et al. 2017; Madry et al. 2018). freelb: each place on the way, the start included (Zhu
    et al. 2020, algorithm 1).
    """
    moves = find_moves(ascent, loss, module, batch)
    with moved(module, batch, torch.cat(moves)):
        return loss(forward, repeated(batch, len(moves)))


def find_moves(ascent: Ascent, loss: Loss, module: nn.Module, batch: Batch) -> list[Tensor]:
    """The moves to learn from, each (rows, T, d): see `adversarial_loss`."""
    embedded = _embedded(module, batch)
    start = torch.zeros_like(embedded)
    greatest = ascent.epsilon * _lengths(embedded)
    if ascent.kind == "fgm":
        return [start, greatest * _unit(_gradient(loss, module, batch, start))]
    is_freelb = ascent.kind == "freelb"
    places = [_random_start(batch, greatest, embedded.shape[-1]) if is_freelb else start]
    for _ in range(ascent.steps - is_freelb):
        gradient = _gradient(loss, module, batch, places[-1])
        step = ascent.step_size * greatest * _unit(gradient)
        places.append(_within(places[-1] + step, greatest))
    return places if is_freelb else [start, places[-1]]


@torch.no_grad()
def _embedded(module: nn.Module, batch: Batch) -> Tensor:
    """Token embeddings (rows, T, d), zero where there is padding."""
    found: Tensor = token_embedding(module)(_rows(batch["input_ids"]))
    return found.float() * _tokens(batch)[..., None]


def _lengths(values: Tensor) -> Tensor:
    """L2 norm of each row of (rows, T, d), as (rows, 1, 1)."""
    found: Tensor = values.flatten(1).norm(dim=1)[:, None, None]
    return found


def _random_start(batch: Batch, greatest: Tensor, width: int) -> Tensor:
    """Uniform noise on the tokens, no row longer than the greatest length."""
    tokens = _tokens(batch)
    noise = 2 * torch.rand(*tokens.shape, width, device=tokens.device) - 1
    numbers = tokens.sum(1).clamp(min=1)[:, None, None] * width
    return greatest * noise * tokens[..., None] / numbers.sqrt()


def _gradient(loss: Loss, module: nn.Module, batch: Batch, at: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    with torch.enable_grad(), moved(module, batch, at):
        (gradient,) = torch.autograd.grad(loss(module, batch), at)
    return gradient


def _unit(move: Tensor) -> Tensor:
    """Each row of length one; where there is nothing to gain it stays zero."""
    # By the greatest one first: the squares of small numbers are lost in fp32.
    greatest = move.abs().amax((1, 2), keepdim=True)
    move = move / greatest.clamp(min=torch.finfo(move.dtype).tiny)
    return move / _lengths(move).clamp(min=_TINY)


def _within(move: Tensor, greatest: Tensor) -> Tensor:
    """Each row shortened to the greatest length."""
    return move * (greatest / _lengths(move).clamp(min=_TINY)).clamp(max=1)


# --- where the moves enter -------------------------------------------------------------------


@contextlib.contextmanager
def moved(module: nn.Module, batch: Batch, moves: Tensor) -> Iterator[None]:
    """Within this, token embeddings come out moved.

    moves: (versions · rows, T, d), of a batch repeated as often.
    """
    versions = len(moves) // len(_rows(batch["input_ids"]))
    tokens = _tokens(batch).repeat(versions, 1)

    def move(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output + _packed(moves, tokens, output).to(output.dtype)

    handle = token_embedding(module).register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def repeated(batch: Batch, times: int) -> Batch:
    """The same batch so many times, one after another."""
    return {name: torch.cat([value] * times) for name, value in batch.items()}


def token_embedding(module: nn.Module) -> nn.Module:
    """Find the table of tokens, in our models and in wrapped ones of transformers."""
    trunk = getattr(module, "trunk", None)
    if isinstance(trunk, nn.Module):
        return trunk.get_submodule("token_embedding")
    for part in module.modules():
        find = getattr(part, "get_input_embeddings", None)
        if callable(find):
            found: nn.Module = find()
            return found
    raise TypeError(f"{type(module).__name__} has no table of tokens")


def _rows(values: Tensor) -> Tensor:
    """(B, T) of (B, T), and (B · choices, T) of several texts an example."""
    return values.flatten(0, -2)


def _tokens(batch: Batch) -> Tensor:
    """Where there is text and no padding, (rows, T) bool."""
    mask = batch.get("attention_mask")
    ids = batch["input_ids"]
    return _rows(torch.ones_like(ids) if mask is None else mask).to(torch.bool)


def _packed(values: Tensor, tokens: Tensor, output: Tensor) -> Tensor:
    """Values (rows, T, d) in the layout of the embedding's output; our trunk drops padding."""
    return values if output.shape[:2] == tokens.shape else values[tokens][None]
