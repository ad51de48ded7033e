"""Noise on texts: how much, of what, and that it depends on nothing but seed, step and example."""

from dataclasses import replace

import numpy as np
import pytest

from finetune.robust.augment import Noise
from finetune.robust.config import Augment
from finetune.tasks.base import Encoded, join

CLS, SEP, PAD, MASK = 1, 2, 0, 3
SPECIAL = frozenset({CLS, SEP, PAD, MASK})


def data(count=400, length=40, seed=0):
    """Texts of ordinary tokens 10 … 29 between two special ones; token k as often as k - 9 asks."""
    draw = np.random.default_rng(seed)
    shares = np.arange(1, 21) / 210
    rows = [
        np.r_[CLS, draw.choice(np.arange(10, 30), draw.integers(5, length), p=shares), SEP].astype(
            np.int32
        )
        for _ in range(count)
    ]
    return Encoded(rows, *join(rows), np.zeros(count, np.int64), 0)


def noise(encoded, seed=0, **rates):
    return Noise.of(Augment(**rates), seed, encoded.tokens, SPECIAL, MASK)


def changed(encoded, found, indices, step=0):
    return found.batch(encoded.batch(np.asarray(indices), PAD), np.asarray(indices), step, PAD)


def texts(arrays):
    return [
        row[mask == 1].tolist()
        for row, mask in zip(arrays["input_ids"], arrays["attention_mask"], strict=True)
    ]


EVERY = {"delete": 0.1, "swap": 0.1, "mask": 0.1, "replace": 0.1}


def test_each_text_is_changed_alike_in_any_batch_and_otherwise_in_another_step():
    encoded = data(20)
    found = noise(encoded, **EVERY)
    together = texts(changed(encoded, found, range(20), step=7))
    alone = [texts(changed(encoded, found, [i], step=7))[0] for i in range(20)]
    backwards = texts(changed(encoded, found, range(20)[::-1], step=7))[::-1]
    assert together == alone == backwards
    assert together != texts(changed(encoded, found, range(20), step=8))
    assert together != texts(changed(encoded, noise(encoded, 1, **EVERY), range(20), step=7))


def test_rates_are_what_was_asked_for():
    encoded = data()
    original = texts(encoded.batch(np.arange(400), PAD))
    free = sum(len(row) - 2 for row in original)
    indices = range(400)

    left = texts(changed(encoded, noise(encoded, delete=0.3), indices))
    assert sum(len(row) - 2 for row in left) / free == pytest.approx(0.7, abs=0.02)
    masked = texts(changed(encoded, noise(encoded, mask=0.2), indices))
    assert sum(row.count(MASK) for row in masked) / free == pytest.approx(0.2, abs=0.02)
    replaced = texts(changed(encoded, noise(encoded, replace=0.5), indices))
    pairs = [p for a, b in zip(original, replaced, strict=True) for p in zip(a, b, strict=True)]
    # Some are replaced by themselves: Σ p² of those drawn.
    same = sum((k / 210) ** 2 for k in range(1, 21))
    share = sum(a != b for a, b in pairs) / free
    assert share == pytest.approx(0.5 * (1 - same), abs=0.02)
    swapped = texts(changed(encoded, noise(encoded, swap=0.2), indices))
    assert [sorted(row) for row in swapped] == [sorted(row) for row in original]
    assert swapped != original


def test_replacements_come_as_often_as_in_the_training_texts():
    encoded = data()
    found = texts(changed(encoded, noise(encoded, replace=0.99), range(400)))
    ordinary = np.array([token for row in found for token in row if token not in SPECIAL])
    shares = np.bincount(ordinary, minlength=30)[10:] / len(ordinary)
    assert np.allclose(shares, np.arange(1, 21) / 210, atol=0.01)


@pytest.mark.parametrize("rates", [{"delete": 0.99}, EVERY, {"swap": 0.9, "replace": 0.9}])
def test_special_tokens_stay_and_a_text_never_ends_up_empty(rates):
    encoded = data(100)
    for row in texts(changed(encoded, noise(encoded, **rates), range(100))):
        assert (row[0], row[-1]) == (CLS, SEP)
        assert CLS not in row[1:]
        assert len(row) >= 3


def test_a_text_of_special_tokens_alone_stays():
    rows = [np.array([CLS, SEP], np.int32), np.array([CLS, 12, SEP], np.int32)]
    encoded = Encoded(rows, *join(rows), np.zeros(2, np.int64), 0)
    found = texts(changed(encoded, noise(encoded, delete=0.9, replace=0.9), [0, 1]))
    assert found == [[CLS, SEP], [CLS, 12, SEP]]


def test_the_batch_is_padded_to_what_is_left():
    encoded = data(8)
    arrays = changed(encoded, noise(encoded, delete=0.5), range(8))
    assert arrays["input_ids"].shape[1] == arrays["attention_mask"].sum(1).max()
    assert (arrays["input_ids"][arrays["attention_mask"] == 0] == PAD).all()
    assert arrays["labels"].tolist() == [0] * 8


def test_segments_follow_their_tokens():
    rows = [np.array([CLS, 10, 11, SEP, 20, 21, 22, SEP], np.int32)]
    segments = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int8)
    encoded = Encoded(rows, *join(rows), np.zeros(1, np.int64), 0, segments)
    for step in range(20):
        arrays = changed(encoded, noise(encoded, delete=0.4), [0], step)
        pairs = zip(arrays["input_ids"][0], arrays["token_type_ids"][0], strict=True)
        assert all(segment == (token >= 20) for token, segment in pairs if token >= 10)


def test_choices_are_changed_row_by_row():
    encoded = data(12)
    three = Encoded(list(range(4)), encoded.tokens, encoded.starts, np.zeros(4), 0, rows_per_item=3)
    found = noise(encoded, **EVERY)
    arrays = changed(three, found, range(4))
    assert arrays["input_ids"].shape[:2] == (4, 3)
    alone = changed(three, found, [2])
    for choice in range(3):
        kept = {n: v[2, choice] for n, v in arrays.items() if n != "labels"}
        again = {n: v[0, choice] for n, v in alone.items() if n != "labels"}
        assert texts({n: v[None] for n, v in kept.items()}) == texts(
            {n: v[None] for n, v in again.items()}
        )


def test_labels_of_tokens_stay_with_their_places():
    encoded = data(5)
    labels = np.arange(len(encoded.tokens))
    tagged = replace(encoded, labels=labels, is_token_level=True)
    arrays = changed(tagged, noise(encoded, mask=0.5, replace=0.2), range(5))
    before = tagged.batch(np.arange(5), PAD)
    assert (arrays["labels"] == before["labels"]).all()
    assert (arrays["input_ids"] != before["input_ids"]).any()
