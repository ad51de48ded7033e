"""Rows of masked language modelling: frames, isolation, padding, and the same at any rank."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from data_prep.samples import Layout
from pretrain.objectives.masked_lm import Frame, MaskedLM
from tests.pretrain.objectives.samples import CLS, PAD, SEP, masker, sample, texts

FRAME = Frame(CLS, SEP, PAD)


def objective(packing: str, seq_len: int = 32, seed: int = 0, **keys) -> MaskedLM:
    layout = Layout(packing, seq_len, overhead=2, drops_eod=packing != "concat")
    return MaskedLM(layout, FRAME, masker(seed, **keys))


def original(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(batch["targets"] != -100, batch["targets"], batch["input_ids"])


def test_best_fit_rows() -> None:
    own = texts([7, 11, 4])
    batch = objective("best_fit").collate([sample(3, *own), sample(4, *texts([30], seed=1))])
    first = [t for s in own for t in (CLS, *s.tokens, SEP)]
    assert original(batch)[0].tolist() == [*first, *[PAD] * 4]
    assert batch["cu_seqlens"].tolist() == [0, 9, 22, 28, 32, 64]
    assert batch["cu_seqlens"].dtype == torch.int32
    expected = [*range(9), *range(13), *range(6), *range(4)]
    assert batch["position_ids"][0].tolist() == expected
    assert batch["position_ids"][1].tolist() == list(range(32))
    assert batch["tally"].tolist() == [[28, 0], [32, 0]]
    assert (batch["targets"] != -100).sum(1).tolist() == [1 + 2 + 1, 5]
    assert "attention_mask" not in batch


def test_padded_rows() -> None:
    batch = objective("padded").collate([sample(0, *texts([10])), sample(None)])
    assert batch["attention_mask"].sum(1).tolist() == [12, 1]  # no row attends to nothing
    assert batch["tally"].tolist() == [[12, 0], [0, 0]]
    assert (batch["targets"][1] == -100).all()
    assert "cu_seqlens" not in batch


def test_windows_of_the_stream_are_framed_as_one() -> None:
    (window,) = texts([30])
    window.tokens[12] = SEP  # the end of a document inside
    (rest,) = texts([9], seed=1)
    batch = objective("concat").collate([sample(0, window), sample(1, rest)])
    assert original(batch)[0].tolist() == [CLS, *window.tokens, SEP]
    assert batch["cu_seqlens"].tolist() == [0, 32, 43, 64]
    assert batch["targets"][0, 13] == -100
    assert (batch["targets"] != -100).sum(1).tolist() == [4, 1]  # of 29 and 9


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("packing", ["best_fit", "padded"])
def test_ranks_and_micro_batches_change_nothing(unit: str, packing: str) -> None:
    """The rows of one rank are those of two ranks, and of a single sample by itself."""
    lengths = [[12, 9, 3]] * 8 if packing == "best_fit" else [[n] for n in range(20, 28)]
    samples = [sample(40 + i, *texts(own, seed=i)) for i, own in enumerate(lengths)]

    def find(ids: npt.NDArray[np.int64], segments: object) -> npt.NDArray[np.bool_]:
        return ids % 3 > 0  # two thirds of the tokens start a word

    whole = objective(packing, unit=unit, find_words=find).collate(samples)
    for size in (1, 4):
        parts = [
            objective(packing, unit=unit, find_words=find).collate(samples[at : at + size])
            for at in range(0, 8, size)
        ]
        for name in ("input_ids", "targets", "tally"):
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    again = [sample(140 + i, *s.segments) for i, s in enumerate(samples)]  # the next epoch
    assert not torch.equal(
        objective(packing, unit=unit).collate(again)["targets"], whole["targets"]
    )


def test_validation_samples_and_training_samples_draw_apart() -> None:
    from pretrain.objectives.draws import VALIDATION_SEED

    own = [sample(0, *texts([30]))]
    train = objective("best_fit", seed=0).collate(own)["targets"]
    valid = objective("best_fit", seed=VALIDATION_SEED).collate(own)["targets"]
    assert not np.array_equal(train, valid)
