"""Attention within packed documents on a CPU: those of similar length together, side by side.

One call for each document would be a hundred small parallel regions, which wait for one another's
threads; one call under a mask would compute all scores between documents and throw them away.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from model import dot_product
from model.bands import band, reach
from model.config import ModelConfig

_FILLED = 0.75  # the shortest document of a bucket has at least this share of the longest
_SLACK = 16  # or lacks at most so many tokens


class Bucket(NamedTuple):
    """Documents side by side, each filled up on the right to the longest."""

    documents: int
    length: int
    mask: Tensor | None  # (documents or 1, 1, length or 1, length), as in `Visibility`
    local_mask: Tensor | None  # the same in layers with a sliding window


class Buckets(NamedTuple):
    """All documents of a batch of N tokens."""

    gather: Tensor  # (M,) where in the batch each token of the buckets comes from
    scatter: Tensor  # (N,) where in the buckets each token of the batch is
    buckets: tuple[Bucket, ...]


def make_buckets(ends: Sequence[int], config: ModelConfig, prefix: Tensor | None) -> Buckets:
    """Sort documents into buckets; `ends` bound them over the flattened tokens, from 0 to N.

    prefix: (N,) bool, True in the prefix of a document, which sees itself whole.
    """
    documents = sorted(((end - start, start) for start, end in pairwise(ends)), reverse=True)
    gather, scatter = [], torch.empty(ends[-1], dtype=torch.int64)
    buckets, taken = [], 0
    for group in _similar(documents):
        longest = group[0][0]
        lengths = torch.tensor([length for length, _ in group])[:, None]
        starts = torch.tensor([start for _, start in group])[:, None]
        place = torch.arange(longest)[None]
        is_token = place < lengths  # (documents, longest)
        # What fills a document up is its own last token: any that exists would do.
        source = starts + torch.minimum(place, lengths - 1)
        scatter[source[is_token]] = taken + is_token.flatten().nonzero()[:, 0]
        gather.append(source.flatten())
        marks = None if prefix is None else prefix[source] & is_token
        mask, local_mask = _mask(is_token, config, None, marks), None
        if config.sliding_layers:
            local_mask = _mask(is_token, config, config.sliding_window, marks)
        buckets.append(Bucket(len(group), longest, mask, local_mask))
        taken += source.numel()
    return Buckets(torch.cat(gather), scatter, tuple(buckets))


def _similar(documents: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut documents, longest first, into groups of similar length."""
    groups: list[list[tuple[int, int]]] = []
    for document in documents:
        longest = groups[-1][0][0] if groups else 0
        if not groups or document[0] < min(_FILLED * longest, longest - _SLACK):
            groups.append([document])
        else:
            groups[-1].append(document)
    return groups


def _mask(
    is_token: Tensor, config: ModelConfig, window: int | None, marks: Tensor | None
) -> Tensor | None:
    """A bucket's mask, or None where causality (or nothing) is enough."""
    longest = is_token.shape[1]
    is_cut = window is not None and longest > reach(window, causal=config.causal)
    # Causal tokens never see what fills their document up: it is to their right.
    needs_filling = not config.causal and not bool(is_token.all())
    if not is_cut and marks is None:
        return is_token[:, None, None, :] if needs_filling else None
    place = torch.arange(longest)
    mask = band(place[:, None], place[None, :], window, causal=config.causal)[None, None]
    if marks is not None:
        mask = mask | (marks[:, :, None] & marks[:, None, :])[:, None]
    # Filling sees filling, so that no query is left without anything to see.
    same = is_token[:, :, None] == is_token[:, None, :]
    return mask & same[:, None] if needs_filling else mask


def attend(
    q: Tensor, k: Tensor, v: Tensor, plan: Buckets, *, causal: bool, local: bool, dropout: float
) -> Tensor:
    """Attention within each document: q (N, H, hd), k and v (N, Hkv, hd) to (N, H, hd).

    One gather and one scatter for all buckets, so that the backward pass has one of each too.
    """
    sizes = [bucket.documents * bucket.length for bucket in plan.buckets]
    q_parts, k_parts, v_parts = (
        torch.split(t.index_select(0, plan.gather), sizes) for t in (q, k, v)
    )
    done = []
    for bucket, *parts in zip(plan.buckets, q_parts, k_parts, v_parts, strict=True):
        mask = bucket.local_mask if local else bucket.mask
        shape = (bucket.documents, bucket.length, -1, q.shape[2])
        qb, kb, vb = (part.view(shape).transpose(1, 2) for part in parts)  # (n, H, L, hd)
        y = dot_product.attend(qb, kb, vb, mask=mask, causal=causal, dropout=dropout)
        done.append(y.transpose(1, 2).flatten(0, 1))
    return torch.cat(done).index_select(0, plan.scatter)
