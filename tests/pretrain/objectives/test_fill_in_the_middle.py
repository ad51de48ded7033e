"""Documents turned around: nothing lost, nothing twice, in the two orders of the paper."""

import numpy as np
import torch

from data_prep.samples import Layout
from pretrain.objectives.fill_in_the_middle import FillInTheMiddle, Sentinels
from pretrain.sections import Infilling
from tests.pretrain.objectives.samples import sample, segment, texts

EOD, PRE, MID, SUF = 0, 1, 2, 3


def objective(seed: int = 0, seq_len: int = 64, **keys) -> FillInTheMiddle:
    layout = Layout("best_fit", seq_len, overhead=3)
    return FillInTheMiddle(layout, EOD, Infilling(**keys), Sentinels(PRE, MID, SUF), seed)


def document(length: int, seed: int = 0) -> list[int]:
    return [*range(10 + seed, 10 + seed + length), EOD]


def parts(tokens: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """The order, and prefix, middle, suffix of a turned document."""
    assert tokens[0] == PRE
    hole, after = tokens.index(MID), tokens.index(SUF)
    assert after < hole
    if after > 1:
        return "PSM", tokens[1:after], tokens[hole + 1 :], tokens[after + 1 : hole]
    return "SPM?", [], tokens[hole + 1 :], tokens[2:hole]


def test_every_token_is_kept_once_and_the_end_stays_at_the_end() -> None:
    fim = objective(fraction=1.0)
    orders = {"PSM": 0, "SPM?": 0}
    for index in range(500):
        (turned,) = fim.turned(sample(index, segment(document(20), previous=5))).segments
        tokens = turned.tokens.tolist()
        assert len(tokens) == 24
        assert sorted(tokens) == sorted([*document(20), PRE, MID, SUF])
        assert tokens[-1] == EOD
        assert turned.previous is None
        orders[parts(tokens)[0]] += 1
        order, prefix, middle, suffix = parts(tokens)
        if order == "PSM":
            assert [*prefix, *middle[:-1], *suffix, EOD] == document(20)
        else:  # the prefix runs into the middle; with no prefix PSM looks the same
            assert [*middle[:-1], *suffix, EOD] == document(20)
    assert abs(orders["PSM"] - 250) < 70


def test_psm_alone_and_spm_alone() -> None:
    long = document(200)
    for spm in (0.0, 1.0):
        fim = objective(fraction=1.0, spm_fraction=spm, seq_len=256)
        seen = {
            parts(fim.turned(sample(i, segment(long))).segments[0].tokens.tolist())[0]
            for i in range(60)
        }
        assert ("PSM" in seen) == (spm == 0.0)
        assert "SPM?" in seen or spm == 0.0


def test_half_of_the_segments_are_turned_and_the_rest_is_untouched() -> None:
    fim, turned = objective(seq_len=128), 0
    for index in range(1000):
        segments = texts([20, 30], seed=index)
        for old, new in zip(segments, fim.turned(sample(index, *segments)).segments, strict=True):
            if len(new.tokens) == len(old.tokens):
                assert new is old
            else:
                turned += 1
    assert abs(turned - 1000) < 4 * (2000 * 0.25) ** 0.5


def test_cuts_are_uniform() -> None:
    fim = objective(fraction=1.0, spm_fraction=0.0)
    lengths = []
    for index in range(6000):
        (new,) = fim.turned(sample(index, segment(document(9)))).segments
        _, prefix, middle, suffix = parts([*new.tokens.tolist()])
        lengths.append((len(prefix), len(middle) - 1, len(suffix)))
    # Two uniform draws from 0 … 9, sorted: the smaller has mean 2.85, the gap 3.3.
    means = np.mean(lengths, axis=0)
    assert np.allclose(means, (2.85, 3.3, 2.85), atol=0.15)


def test_a_piece_without_an_end_and_a_short_one() -> None:
    fim = objective(fraction=1.0)
    (piece,) = fim.turned(sample(0, segment([10, 11, 12], previous=9))).segments
    assert sorted(piece.tokens.tolist()) == [PRE, MID, SUF, 10, 11, 12]
    (alone,) = fim.turned(sample(0, segment([EOD]))).segments
    assert sorted(alone.tokens.tolist()) == [EOD, PRE, MID, SUF]


def test_the_batch_is_causal_over_everything_and_never_overflows() -> None:
    fim = objective(fraction=1.0, seq_len=64)
    samples = [sample(i, *texts([20, 18, 14], seed=i)) for i in range(20)]  # 52 + 9 = 61
    batch = fim.collate([*samples, sample(None)])
    assert batch["tally"].tolist() == [*[[61, 0]] * 20, [0, 0]]
    assert (batch["targets"] != -100).sum(1).tolist() == [*[61] * 20, 0]
    assert batch["cu_seqlens"][:5].tolist() == [0, 23, 44, 61, 64]
    for row, own in enumerate(samples):
        expected = np.concatenate([s.tokens for s in fim.turned(own).segments])
        assert torch.equal(batch["targets"][row, :61], torch.from_numpy(expected))
        assert batch["input_ids"][row, 0] == EOD
        assert torch.equal(batch["input_ids"][row, 1:23], batch["targets"][row, :22])


def test_a_sample_is_always_turned_alike() -> None:
    samples = [sample(i, *texts([9, 14], seed=i)) for i in range(8)]
    whole = objective(fraction=0.7).collate(samples)["input_ids"]
    for i in range(8):
        alone = objective(fraction=0.7).collate(samples[i : i + 1])["input_ids"]
        assert torch.equal(alone[0], whole[i])
    assert not torch.equal(objective(seed=1, fraction=0.7).collate(samples)["input_ids"], whole)
