"""Prefixes: drawn for each isolated text, uniformly, and never predicted."""

import numpy as np
import pytest
import torch

from data_prep.collate import CausalCollate
from data_prep.samples import Layout
from pretrain.objectives.prefix_lm import PrefixLM
from tests.pretrain.objectives.samples import sample, segment, texts

EOD = 0


def layout(packing: str, seq_len: int = 32) -> Layout:
    return Layout(packing, seq_len, lookahead=int(packing in ("concat", "documents")))


def window(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 100, length).tolist()


def batches(packing: str, samples):
    plain = CausalCollate(layout(packing), EOD)(samples)
    return plain, PrefixLM(layout(packing), EOD, seed=4).collate(samples)


def test_best_fit_rows_have_a_prefix_in_each_segment() -> None:
    samples = [sample(i, *texts([9, 14, 1, 5], seed=i)) for i in range(50)]
    plain, batch = batches("best_fit", samples)
    bounds = [(0, 9), (9, 23), (23, 24), (24, 29)]
    for row in range(50):
        mask, targets = batch["prefix_mask"][row], batch["targets"][row]
        assert not mask[29:].any()
        for begin, end in bounds:
            length = int(mask[begin:end].sum())
            assert length < end - begin
            assert mask[begin : begin + length].all()
            # The last token of the prefix predicts the first one after it.
            first = begin + max(length - 1, 0)
            assert (targets[begin:first] == -100).all()
            assert torch.equal(targets[first:end], plain["targets"][row, first:end])
    for name in ("input_ids", "position_ids", "cu_seqlens"):
        assert torch.equal(batch[name], plain[name])


def test_prefixes_are_uniform() -> None:
    samples = [sample(i, *texts([8, 24])) for i in range(4000)]
    mask = batches("best_fit", samples)[1]["prefix_mask"]
    for begin, end in ((0, 8), (8, 32)):
        size = end - begin
        counts = np.bincount(mask[:, begin:end].sum(1).numpy(), minlength=size)
        assert len(counts) == size
        chi = ((counts - 4000 / size) ** 2 / (4000 / size)).sum()
        assert chi < size - 1 + 4 * (2 * (size - 1)) ** 0.5


@pytest.mark.parametrize("packing", ["concat", "padded"])
def test_a_row_that_is_one_text_has_one_prefix(packing) -> None:
    tokens = window(32 + (packing == "concat"))
    tokens[10] = EOD  # one window, one prefix, whatever ends in it
    samples = [sample(i, segment(tokens)) for i in range(200)]
    batch = batches(packing, samples)[1]
    lengths = batch["prefix_mask"].sum(1)
    assert int(lengths.max()) > 25
    first_false = (~batch["prefix_mask"]).int().argmax(1)
    assert torch.equal(first_false, lengths)


def test_documents_of_a_window_have_their_own_prefixes() -> None:
    tokens = window(33)
    tokens[11] = tokens[20] = EOD
    samples = [sample(i, segment(tokens)) for i in range(300)]
    batch = batches("documents", samples)[1]
    assert batch["cu_seqlens"][:4].tolist() == [0, 12, 21, 32]
    mask = batch["prefix_mask"]
    for begin, end in ((0, 12), (12, 21), (21, 32)):
        assert not mask[:, end - 1].any()
        assert mask[:, begin].float().mean() > 0.8
        # Independent of one another.
        others = mask[:, [c for c in range(32) if not begin <= c < end]].sum(1).double()
        own = mask[:, begin:end].sum(1).double()
        assert abs(np.corrcoef(own, others)[0, 1]) < 0.2


def test_padding_has_no_prefix_and_no_targets() -> None:
    for packing in ("concat", "documents", "best_fit", "padded"):
        samples = [sample(7, segment(window(9))), sample(None)]
        batch = batches(packing, samples)[1]
        assert not batch["prefix_mask"][0, 9:].any()
        assert not batch["prefix_mask"][1].any()
        assert (batch["targets"][1] == -100).all()


def test_the_prefix_of_a_sample_is_always_the_same() -> None:
    samples = [sample(i, *texts([9, 14], seed=i)) for i in range(8)]
    objective = PrefixLM(layout("best_fit"), EOD, seed=4)
    whole = objective.collate(samples)["prefix_mask"]
    for i in range(8):
        assert torch.equal(objective.collate(samples[i : i + 1])["prefix_mask"][0], whole[i])
    other = PrefixLM(layout("best_fit"), EOD, seed=5).collate(samples)["prefix_mask"]
    assert not torch.equal(other, whole)
