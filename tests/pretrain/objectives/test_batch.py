"""Counting, cutting and weighting batches, against the mean over everything at once."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from model import build
from model.config import ModelConfig
from pretrain.objectives.batch import TALLY, Counts, count, split, weighted
from pretrain.tally import Tally

CPU = torch.device("cpu")


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return build(
        ModelConfig(family="llama", n_layers=1, n_heads=2, d_model=8, vocab_size=11, max_seq_len=16)
    )


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (6, 10), generator=generator)
    targets = torch.randint(0, 11, (6, 10), generator=generator)
    targets[1, 3:] = -100  # unequal counts: a mean of means would differ
    targets[4] = -100
    tally = torch.tensor([[10, 0], [3, 0], [10, 2], [10, 0], [0, 0], [10, 5]])
    return {"input_ids": ids, "targets": targets, TALLY: tally}


def test_counting() -> None:
    assert count(batch()) == Counts(predicted=43, pairs=0, tokens=43, replaced=7)
    labels = torch.tensor([0, 1, -100, 1, -100, 0])
    assert count(batch() | {"pair_labels": labels}).pairs == 4


def test_shares_of_micro_batches_add_up_to_the_global_mean_and_its_gradient() -> None:
    net, whole = tiny(), batch()
    inputs = {name: whole[name] for name in ("input_ids", "targets")}
    expected = net(**inputs).loss
    (want,) = torch.autograd.grad(expected, net.trunk.token_embedding.weight)
    pieces = split(whole, 2, CPU)
    losses = [weighted(count(whole))(net, piece) for piece in pieces]
    assert torch.allclose(sum(losses), expected, rtol=1e-6)
    (got,) = torch.autograd.grad(sum(losses), net.trunk.token_embedding.weight)
    assert torch.allclose(got, want, atol=1e-7)
    means = torch.stack([net(**piece).loss for piece in pieces]).mean()
    assert abs(float((means - expected).detach())) > 1e-3  # the mistake that this guards against


class Means(NamedTuple):
    token_loss: torch.Tensor
    pair_loss: torch.Tensor


class Fake(nn.Module):
    """Losses that are means of numbers written into the batch."""

    def forward(self, input_ids, targets, pair_labels, rows=None) -> Means:
        chosen = input_ids.flatten()[rows] if rows is not None else input_ids
        pairs = input_ids[pair_labels != -100, 0]
        mean = chosen.double().mean() if chosen.numel() else torch.zeros(())
        return Means(mean, pairs.double().mean() if len(pairs) else torch.zeros(()))


def test_two_means_each_with_its_own_number() -> None:
    labels = torch.tensor([0, 1, -100, 1, -100, 0])
    whole = batch() | {"pair_labels": labels}
    ids, targets = whole["input_ids"].double(), whole["targets"]
    expected = ids[targets != -100].mean() + ids[labels != -100, 0].mean()
    for size in (1, 2, 3, 4, 6):
        shares = [weighted(count(whole))(Fake(), piece) for piece in split(whole, size, CPU)]
        assert float(sum(shares)) == pytest.approx(float(expected), rel=1e-12)


def test_a_micro_batch_without_targets_adds_nothing() -> None:
    empty = {"input_ids": torch.zeros(1, 4, dtype=torch.long), "targets": torch.full((1, 4), -100)}
    (piece,) = split(empty, 1, CPU)
    assert weighted(Counts(10, 0, 4, 0))(tiny(), piece).item() == 0.0


def test_split_carries_every_key_and_finds_the_predicted_rows() -> None:
    whole = batch() | {
        "attention_mask": torch.ones(6, 10),
        "pair_labels": torch.arange(6),
        "prefix_mask": torch.zeros(6, 10, dtype=torch.bool),
    }
    pieces = split(whole, 4, CPU)
    assert [len(piece["pair_labels"]) for piece in pieces] == [4, 2]
    for piece, rows in zip(pieces, (range(4), range(4, 6)), strict=True):
        assert set(piece) == set(whole) - {TALLY} | {"rows"}
        expected = (whole["targets"][list(rows)].flatten() != -100).nonzero()[:, 0]
        assert torch.equal(piece["rows"], expected)
        assert piece["rows"].dtype == torch.int64
        assert piece["pair_labels"].tolist() == list(rows)


def test_no_rows_where_all_is_predicted() -> None:
    first, *_ = split(batch(), 1, CPU)
    assert "rows" not in first


def test_split_cuts_document_boundaries_with_the_rows() -> None:
    whole = batch() | {"cu_seqlens": torch.tensor([0, 4, 10, 20, 30, 33, 40, 50, 60])}
    first, second, third = split(whole, 2, CPU)
    assert first["cu_seqlens"].tolist() == [0, 4, 10, 20]
    assert second["cu_seqlens"].tolist() == [0, 10, 13, 20]
    assert third["cu_seqlens"].tolist() == [0, 10, 20]
    assert torch.equal(second["input_ids"], whole["input_ids"][2:4])


def test_the_tally_gives_means_a_step_and_starts_again() -> None:
    tally = Tally()
    tally.add(Counts(10, 0, 90, 0), 100)
    tally.add(Counts(20, 0, 70, 0), 100)
    assert tally.predicted_fraction == 30 / 160
    assert tally.read() == {"utilisation": 0.8, "predicted_tokens": 15}
    tally.add(Counts(5, 0, 50, 0), 50)
    assert tally.read() == {"utilisation": 1.0, "predicted_tokens": 5}


def test_the_tally_of_pairs_counts_them_also_where_there_are_none() -> None:
    tally = Tally(has_pairs=True)
    for pairs, replaced in ((4, 8), (0, 0)):
        tally.add(Counts(5, pairs, 50, replaced), 50)
        found = {"predicted_pairs": pairs, "replaced_tokens": replaced}
        assert tally.read() == {"utilisation": 1.0, "predicted_tokens": 5, **found}
