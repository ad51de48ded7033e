"""Which tokens are hidden, counted over many samples."""

import numpy as np
import pytest

from pretrain.objectives.masking import LONGEST_SPAN, choose, span_lengths
from tests.pretrain.objectives.samples import CLS, MASK, PAD, SEP, UNK, VOCAB, masker, row

IGNORED = -100


def every_third_starts(ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Words of three tokens each, counted from the row's first."""
    return np.broadcast_to(np.arange(ids.shape[1]) % 3 == 0, ids.shape)


@pytest.mark.parametrize("lengths", [[1], [3], [10], [100, 7, 41], [510]])
@pytest.mark.parametrize("fraction", [0.15, 0.4])
def test_each_segment_hides_its_share_and_at_least_one(lengths, fraction) -> None:
    ids, numbers = row(lengths)
    for index in range(20):
        _, targets = masker(fraction=fraction)(ids, numbers, [index])
        for number, length in enumerate(lengths):
            hidden = ((targets != IGNORED) & (numbers == number)).sum()
            assert hidden == max(1, int(fraction * length + 0.5))


def test_eighty_ten_ten() -> None:
    ids, numbers = row([500] * 8)
    fates = np.zeros(3)
    drawn = []
    for index in range(50):
        inputs, targets = masker()(ids, numbers, [index])
        hidden = targets != IGNORED
        assert (targets[hidden] == ids[hidden]).all()
        assert (inputs[~hidden] == ids[~hidden]).all()
        now, was = inputs[hidden], ids[hidden]
        random = now[(now != MASK) & (now != was)]
        fates += [(now == MASK).sum(), len(random), (now == was).sum()]
        drawn.append(random)
    total = fates.sum()
    assert total == 50 * 8 * 75
    # Four standard deviations; a random token is the old one once in 995 times.
    for count, share in zip(fates, (0.8, 0.1 * 994 / 995, 0.1 + 0.1 / 995), strict=True):
        assert abs(count / total - share) < 4 * (share * (1 - share) / total) ** 0.5
    tokens = np.concatenate(drawn)
    assert tokens.min() >= 5
    assert tokens.max() < VOCAB
    # 3,000 draws from 995 tokens: chi-squared with 994 degrees of freedom.
    counts = np.bincount(tokens - 5, minlength=995)
    expected = len(tokens) / 995
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 994) < 4 * (2 * 994) ** 0.5


def test_no_random_tokens_and_all_kept() -> None:
    ids, numbers = row([200])
    inputs, targets = masker(mask_fraction=1.0, random_fraction=0.0)(ids, numbers, [0])
    assert (inputs[targets != IGNORED] == MASK).all()
    inputs, targets = masker(mask_fraction=0.0, random_fraction=0.0)(ids, numbers, [0])
    assert (inputs == ids).all()
    assert (targets != IGNORED).sum() == 30


def test_special_tokens_are_never_hidden_and_never_counted() -> None:
    ids, numbers = row([40])
    for place, token in ((5, UNK), (9, SEP), (20, PAD), (21, MASK), (30, CLS)):
        ids[0, place] = token
    seen = np.zeros(ids.shape, dtype=int)
    for index in range(300):
        inputs, targets = masker()(ids, numbers, [index])
        seen += targets != IGNORED
        special = (ids < 5) | (numbers < 0)
        assert (targets[special] == IGNORED).all()
        assert (inputs[special] == ids[special]).all()
        assert (targets != IGNORED).sum() == 5  # of 35: 5.25
    assert seen[ids >= 5].min() > 0


def test_every_place_is_as_likely() -> None:
    ids, numbers = row([64])
    seen = np.zeros(ids.shape)
    for index in range(2000):
        seen += masker()(ids, numbers, [index])[1] != IGNORED
    share = seen[numbers >= 0] / 2000  # 10 of 64
    assert abs(share - 10 / 64).max() < 5 * (10 / 64 * 54 / 64 / 2000) ** 0.5


def test_the_same_sample_is_masked_alike_whatever_stands_beside_it() -> None:
    lengths = [[30], [12], [7], [28]]
    rows = [row([n + 2 for n in own], seed) for seed, own in enumerate(lengths)]
    width = max(ids.shape[1] for ids, _ in rows)
    ids = np.zeros((4, width), dtype=np.int64)
    numbers = np.full((4, width), -1)
    for i, (own, own_numbers) in enumerate(rows):
        ids[i, : own.shape[1]] = own
        numbers[i, : own.shape[1]] = np.where(own_numbers >= 0, i, -1)
    for unit in ("token", "word", "span"):
        mask = masker(seed=9, unit=unit, find_words=every_third_starts)
        whole = mask(ids, numbers, [70, 71, 72, 73])
        for i in range(4):
            alone = numbers[i : i + 1] - np.where(numbers[i : i + 1] >= 0, i, 0)
            part = mask(ids[i : i + 1], alone, [70 + i])
            assert (part[0] == whole[0][i]).all()
            assert (part[1] == whole[1][i]).all()
        other = mask(ids, numbers, [74, 75, 76, 77])
        assert (other[1] != whole[1]).any()
        assert (masker(seed=10, unit=unit)(ids, numbers, [70, 71, 72, 73])[1] != whole[1]).any()


def test_padding_rows_hide_nothing() -> None:
    ids, numbers = np.zeros((2, 8), dtype=np.int64), np.full((2, 8), -1)
    for unit in ("token", "word", "span"):
        inputs, targets = masker(unit=unit)(ids, numbers, [None, None])
        assert (inputs == 0).all()
        assert (targets == IGNORED).all()


def test_whole_words_are_hidden_whole_and_the_budget_is_kept() -> None:
    ids, numbers = row([300])  # tokens 1 … 300: words of 3, but 2 in the first and 1 in the last
    fates = []
    for index in range(200):
        inputs, targets = masker(unit="word", find_words=every_third_starts)(ids, numbers, [index])
        hidden = (targets != IGNORED)[0]
        for word in range(1, 100):
            own = hidden[3 * word : 3 * word + 3]
            assert own.all() or not own.any()
            if own.all():
                fates.append(tuple(inputs[0, 3 * word : 3 * word + 3] == MASK))
        assert abs(hidden.sum() - 45) <= 1  # a word of 3 more or less would be further away
    # The fate is drawn for each token: 0.8³ of the words are all [MASK].
    share = np.mean([all(fate) for fate in fates])
    assert abs(share - 0.512) < 4 * (0.512 * 0.488 / len(fates)) ** 0.5


def test_a_word_beyond_the_budget_is_taken_where_that_is_nearer() -> None:
    # One word of 10 tokens: budget 2 (15 % of 10), and at least one word is hidden.
    starts = np.arange(10) == 0
    assert choose(np.zeros(10, np.int64), starts, np.zeros(10, np.uint64), 0.15).all()
    # Two words of 4 and 16; the budget of 20 · 0.25 = 5 is nearer to 4 than to 20.
    starts = np.isin(np.arange(20), (0, 4))
    order = np.where(np.arange(20) < 4, 0, 1).astype(np.uint64)
    assert choose(np.zeros(20, np.int64), starts, order, 0.25).sum() == 4
    # Of 10 · 2 tokens with budget 3 (0.15 · 20): 2 and 4 are as near; not more than asked.
    starts = np.arange(20) % 2 == 0
    order = np.repeat(np.arange(10), 2).astype(np.uint64)
    assert choose(np.zeros(20, np.int64), starts, order, 0.15).sum() == 2
    # With budget 6 of 3-token words and 0.27 · 21 = 5.67 → 6: exactly two words.
    starts = np.arange(21) % 3 == 0
    order = np.repeat(np.arange(7)[::-1], 3).astype(np.uint64)
    found = choose(np.zeros(21, np.int64), starts, order, 0.27)
    assert np.flatnonzero(found).tolist() == [15, 16, 17, 18, 19, 20]


def runs(flags: np.ndarray) -> list[int]:
    """Lengths of the unbroken stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [int(n) for n in edges[1::2] - edges[::2]]


def test_spans_have_spanberts_lengths() -> None:
    expected = span_lengths(3.8)
    assert len(expected) == LONGEST_SPAN
    assert (expected * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=1e-9)
    # The paper's p = 0.2.
    assert np.allclose(expected[1:] / expected[:-1], 0.8, atol=0.001)
    ids, numbers = row([2000])
    # So few that two rarely touch; the budget cuts the last one of each sample short.
    found, cut = np.zeros(LONGEST_SPAN + 1), 0
    for index in range(1500):
        _, targets = masker(unit="span", fraction=0.02)(ids, numbers, [index])
        hidden = (targets != IGNORED)[0]
        assert hidden.sum() == 40
        for length in runs(hidden):
            found[min(length, LONGEST_SPAN)] += 1
            cut += 1
    share = found[1:] / cut
    # A cut last span in ten makes short ones likelier, touching ones long: within 3 points.
    assert abs(share - expected).max() < 0.03
    mean = (share * np.arange(1, 11)).sum()
    assert 3.4 < mean < 4.0


def test_the_tiles_of_spans_are_geometric() -> None:
    mask = masker(unit="span")
    lengths = np.concatenate(
        [np.diff(np.flatnonzero(mask._tile(index, 400))) for index in range(200)]
    )
    counts = np.bincount(lengths, minlength=11)[1:]
    expected = span_lengths(3.8) * len(lengths)
    chi = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 10
    assert chi < 9 + 4 * 18**0.5  # nine degrees of freedom
    starts = np.mean([mask._tile(index, 40) for index in range(4000)], axis=0)
    # No place begins a tile much oftener than another: 1 / 3.8 of them.
    assert abs(starts - 1 / 3.8).max() < 0.08


def test_a_span_has_one_fate_and_consists_of_whole_words() -> None:
    ids, numbers = row([600])
    mixed = 0
    for index in range(100):
        inputs, targets = masker(unit="span", find_words=every_third_starts, fraction=0.1)(
            ids, numbers, [index]
        )
        hidden = (targets != IGNORED)[0]
        for word in range(1, 200):
            own = slice(3 * word, 3 * word + 3)
            assert hidden[own].all() or not hidden[own].any()
            if hidden[own].any():
                fate = (inputs == MASK)[0, own]
                mixed += fate.any() and not fate.all()
        assert abs(hidden.sum() - 60) <= 1
    assert mixed == 0


def test_spans_end_with_their_segment() -> None:
    ids, numbers = row([4] * 60)
    for index in range(50):
        _, targets = masker(unit="span")(ids, numbers, [index])
        hidden = (targets != IGNORED)[0]
        for number in range(60):
            assert hidden[numbers[0] == number].sum() == 1


def test_the_masks_of_one_sample_stay_those_of_today() -> None:
    """Runs resume with the same masks in a later version: these were written down."""
    ids, numbers = row([30])
    _, targets = masker(seed=1)(ids, numbers, [5])
    assert np.flatnonzero(targets[0] != IGNORED).tolist() == FROZEN["token"]
    _, targets = masker(seed=1, unit="span", fraction=0.3)(ids, numbers, [5])
    assert np.flatnonzero(targets[0] != IGNORED).tolist() == FROZEN["span"]


FROZEN = {"token": [1, 5, 9, 11, 13], "span": [1, *range(16, 24)]}
