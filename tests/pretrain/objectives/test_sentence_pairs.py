"""Pairs made by hand-checkable rules, on documents whose tokens say where they are from."""

import numpy as np
import pytest
import torch

from data_prep.samples import Layout
from pretrain.objectives.masked_lm import Frame
from pretrain.objectives.sentence_pairs import APART, TOGETHER, OtherDocuments, SentencePairs
from pretrain.sections import Pairs
from runtime.errors import UserError
from tests.pretrain.objectives.samples import CLS, PAD, SEP, VOCAB, masker, sample, segment

FRAME = Frame(CLS, SEP, PAD)


def document(number: int, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens 10·number + 5 … (so that a token tells its document), and the sentences' ends."""
    tokens = 5 + 10 * number + np.arange(sum(lengths)) % 10
    return tokens, np.cumsum(lengths)


class FakeShards:
    """What OtherDocuments needs of Shards; SEP ends each document, within its last sentence."""

    directory, split, eod_id = "somewhere", "train", SEP

    def __init__(self, documents: list[list[int]]) -> None:
        self.documents = [document(number, lengths) for number, lengths in enumerate(documents)]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.append(self.documents[number][0], SEP).astype(np.uint16)

    def sentence_ends(self, number: int) -> np.ndarray:
        ends = self.documents[number][1].copy()
        if len(ends):
            ends[-1] += 1
        return ends if len(ends) else np.ones(1, np.int64)


def objective(kind: str, seq_len: int = 35, shards=None, seed: int = 0, short: float = 0.0):
    others = OtherDocuments([shards or FakeShards([[5, 4, 6]] * 90)]) if kind == "nsp" else None
    return SentencePairs(
        Layout("padded", seq_len, overhead=3, drops_eod=True),
        FRAME,
        masker(seed),
        pairs=Pairs(short_fraction=short),
        seed=seed,
        others=others,
    )


def piece(number: int, lengths: list[int], previous: int | None = None):
    tokens, ends = document(number, lengths)
    return segment(tokens, document=number, ends=ends, previous=previous)


def owner(tokens: np.ndarray) -> set[int]:
    return set(((tokens - 5) // 10).tolist())


def test_nsp_replaces_half_of_the_second_texts() -> None:
    nsp, apart, cuts, others = objective("nsp"), 0, [], []
    for index in range(2000):
        pair = nsp.pair(sample(index, piece(7, [5, 4, 6])))
        assert pair is not None
        tokens = document(7, [5, 4, 6])[0]
        assert len(pair.first) in (5, 9)
        cuts.append(len(pair.first))
        assert (pair.first == tokens[: len(pair.first)]).all()
        if pair.label == TOGETHER:
            assert (pair.second == tokens[len(pair.first) :]).all()
            assert pair.own == 15
            continue
        apart += 1
        assert pair.own == len(pair.first)
        (other,) = owner(pair.second)
        others.append(other)
        # It ends with its document, as the own one does, and has no more tokens: [4, 6] or [6].
        begin, room = int(pair.second[0] - 5) % 10, 15 - len(pair.first)
        assert begin == (5 if room == 10 else 9)
        assert len(pair.second) == room
    assert abs(apart - 1000) < 4 * 500**0.5
    assert abs(cuts.count(5) - 1000) < 4 * 500**0.5
    # Every other document, the own one never: 89 · 4 standard deviations of 1,000 / 89.
    counts = np.bincount(others, minlength=90)
    assert counts[7] == 0
    assert (np.delete(counts, 7) > 0).sum() > 85
    assert counts.max() < 11.2 + 5 * 11.2**0.5


def test_a_piece_that_was_cut_is_replaced_to_its_length() -> None:
    nsp, begins = objective("nsp", shards=FakeShards([[9] * 9] * 20)), set()
    for index in range(200):
        pair = nsp.pair(sample(index, piece(3, [9, 9, 9, 5])))  # as long as the row allows
        assert len(pair.first) + len(pair.second) == 32
        if pair.label == APART and len(pair.first) == 9:
            begins.add(int(pair.second[0] - 5) % 10)
    # From the second sentence on to the last that 23 tokens follow: 9, 18, … 54 of 81.
    assert begins == {9, 8, 7, 6, 5, 4}


def test_a_sentence_too_long_for_what_it_replaces_is_cut() -> None:
    nsp, seen = objective("nsp", shards=FakeShards([[3, 25]] * 20)), 0
    for index in range(40):
        pair = nsp.pair(sample(index, piece(3, [4, 7])))
        if pair.label == APART:
            seen += 1
            assert len(pair.second) == 7
            assert (pair.second[0] - 5) % 10 == 3
    assert seen > 10


def test_one_sentence_is_always_followed_by_another_document() -> None:
    nsp = objective("nsp")
    for index, length in enumerate((3, 16, 17, 32)):
        pair = nsp.pair(sample(index, piece(3, [length])))
        assert pair.label == APART
        assert len(pair.first) == min(length, 16)
        assert owner(pair.second) != {3}
        assert 1 <= len(pair.second) <= 32 - len(pair.first)


def test_nsp_needs_documents_with_text() -> None:
    nsp = objective("nsp", shards=FakeShards([[4], [], []]))
    with pytest.raises(UserError, match="empty"):
        nsp.pair(sample(0, piece(0, [4])))


def test_sop_swaps_half() -> None:
    sop, apart = objective("sop"), 0
    tokens = document(2, [5, 4, 6])[0]
    for index in range(2000):
        pair = sop.pair(sample(index, piece(2, [5, 4, 6])))
        apart += pair.label
        whole = [pair.second, pair.first] if pair.label == APART else [pair.first, pair.second]
        assert len(whole[0]) in (5, 9)
        assert (np.concatenate(whole) == tokens).all()
        assert pair.own == 15
    assert abs(apart - 1000) < 4 * 500**0.5


@pytest.mark.parametrize(
    ("lengths", "previous", "kept"),
    [
        ([5, 4, 6], None, (0, 15)),  # a whole document
        ([5, 4, 6], 9, (5, 15)),  # its first sentence began in the piece before
        ([9, 9, 9, 5], None, (0, 27)),  # as long as the row allows: cut in its last sentence
        ([9, 4, 9, 10], 9, (9, 22)),
    ],
)
def test_sop_swaps_whole_sentences_alone(lengths, previous, kept) -> None:
    """Half a sentence first or last would tell the order."""
    tokens, ends = document(2, lengths)
    bounds = {0, *ends.tolist()}
    labels = set()
    for index in range(60):
        pair = objective("sop").pair(sample(index, piece(2, lengths, previous)))
        whole = [pair.second, pair.first] if pair.label == APART else [pair.first, pair.second]
        assert (np.concatenate(whole) == tokens[slice(*kept)]).all()
        assert kept[0] + len(whole[0]) in bounds - set(kept)
        assert pair.own == kept[1] - kept[0]
        labels.add(pair.label)
    assert labels == {TOGETHER, APART}


@pytest.mark.parametrize(
    ("lengths", "previous"), [([1], None), ([20], None), ([5, 4], 9), ([9, 23], None), ([32], 9)]
)
def test_sop_of_fewer_than_two_whole_sentences_is_no_pair(lengths, previous) -> None:
    for index in range(6):
        pair = objective("sop").pair(sample(index, piece(2, lengths, previous)))
        assert (pair.first == document(2, lengths)[0]).all()
        assert (len(pair.second), pair.label, pair.own) == (0, -100, sum(lengths))


def test_a_tenth_of_the_pairs_is_short() -> None:
    pairs = objective("sop", short=0.1)
    long = piece(4, [1] * 31)  # not as long as the row: only what is cut shorter loses a sentence
    sizes = np.array([pairs.pair(sample(i, long)).own for i in range(3000)])
    share = (sizes < 31).mean()
    assert abs(share - 0.1 * 30 / 31) < 4 * (0.09 / 3000) ** 0.5
    short = sizes[sizes < 31]
    assert short.min() <= 3
    assert abs(short.mean() - 15.5) < 2.5


def test_rows_have_the_frame_types_labels_and_counts() -> None:
    nsp = objective("nsp", short=0.3)
    samples = [sample(i, piece(i % 80, [6, 5, 9, 12])) for i in range(400)]
    batch = nsp.collate([*samples, sample(None)])
    tokens = torch.where(batch["targets"] != -100, batch["targets"], batch["input_ids"])
    for row, own in enumerate(samples):
        pair = nsp.pair(own)
        a, b = len(pair.first), len(pair.second)
        assert a + b + 3 <= 35
        expected = [CLS, *pair.first, SEP, *pair.second, SEP, *[PAD] * (35 - a - b - 3)]
        assert tokens[row].tolist() == expected
        types = [0] * (a + 2) + [1] * (b + 1) + [0] * (35 - a - b - 3)
        assert batch["token_type_ids"][row].tolist() == types
        assert batch["attention_mask"][row].tolist() == [1] * (a + b + 3) + [0] * (35 - a - b - 3)
        assert batch["pair_labels"][row] == pair.label
        assert batch["tally"][row].tolist() == [a + b + 3, 32 - pair.own]
        hidden = batch["targets"][row] != -100
        assert hidden.sum() == max(1, int(0.15 * (a + b) + 0.5))
        assert not hidden[[0, a + 1, a + b + 2]].any()
    assert batch["pair_labels"][-1] == -100
    assert batch["tally"][-1].tolist() == [0, 0]
    assert (batch["targets"][-1] == -100).all()
    assert set(batch["input_ids"].unique().tolist()) <= set(range(VOCAB))


def test_a_pair_is_always_the_same() -> None:
    samples = [sample(100 + i, piece(i, [6, 5, 9, 12])) for i in range(16)]
    for kind in ("nsp", "sop"):
        whole = objective(kind).collate(samples)
        for i in range(16):
            alone = objective(kind).collate(samples[i : i + 1])
            for name, tensor in alone.items():
                assert torch.equal(tensor[0], whole[name][i]), name
        other = objective(kind, seed=1).collate(samples)
        assert not torch.equal(other["input_ids"], whole["input_ids"])
