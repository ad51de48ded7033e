"""Exact match and F1 of answers, against counts made another way."""

import difflib
import random
import re
import string

import pytest

from finetune.tasks.answer_scores import score, units_of


def words(text):
    """SQuAD's normalisation, character by character."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in re.split(r"\s+", kept) if word not in ("", "a", "an", "the")]


def test_words_are_counted_as_in_squad():
    draw = random.Random(1)
    vocabulary = [
        "the",
        "The",
        "a",
        "An",
        "Denver",
        "denver",
        "Broncos",
        "24-10",
        "U.S.",
        "'s",
        "10",
    ]
    partial = 0
    for _ in range(500):
        one, other = (" ".join(draw.choices(vocabulary, k=draw.randint(1, 5))) for _ in range(2))
        found, gold = words(one), words(other)
        rest = list(gold)
        for word in found:
            if word in rest:
                rest.remove(word)
        common = len(gold) - len(rest)
        if not found or not gold:
            expected = float(found == gold)
        else:
            precision, recall = common / len(found), common / len(gold)
            expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert score(one, [other], "words") == pytest.approx((float(found == gold), expected))
        partial += 0 < expected < 1
    assert partial > 100


def test_characters_are_counted_as_in_cmrc():
    draw = random.Random(2)
    partial = 0
    for _ in range(500):
        one, other = ("".join(draw.choices("中国人民银行", k=draw.randint(1, 7))) for _ in range(2))
        run = difflib.SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size
        precision, recall = run / len(one), run / len(other)
        expected = 2 * precision * recall / (precision + recall) if run else 0.0
        assert score(one, [other], "characters") == pytest.approx((float(one == other), expected))
        partial += 0 < expected < 1
    assert partial > 100


@pytest.mark.parametrize(
    ("answer", "right", "units", "exact", "f1"),
    [
        ("the Denver Broncos!", "Denver Broncos", "words", 1, 1),
        ("Denver", "Denver Broncos", "words", 0, 2 / 3),
        ("《战国无双3》，", "战国无双3", "characters", 1, 1),
        ("由光荣开发", "光荣", "characters", 0, 2 * 2 / (5 + 2)),
        ("光ω-force荣", "ω-force", "characters", 0, 2 / 4),  # a Latin word is one unit
        ("在1998年", "1998年", "characters", 0, 2 * 2 / 5),
        ("", "光荣", "characters", 0, 0),
        ("", "Denver", "words", 0, 0),
    ],
)
def test_known_answers(answer, right, units, exact, f1):
    assert score(answer, [right], units) == pytest.approx((exact, f1))


def test_the_best_of_several_right_answers_counts():
    assert score("Denver", ["Broncos", "Denver Broncos"], "words") == pytest.approx((0, 2 / 3))
    assert score("Denver", ["Denver", "Denver Broncos"], "words") == (1, 1)


def test_without_a_right_answer_only_nothing_is_right():
    assert score("", [], "words") == (1, 1)
    assert score("Denver", [], "words") == (0, 0)


def test_chinese_texts_are_counted_by_characters():
    assert units_of(["《战国无双3》由光荣和ω-force开发", "中国 NFL"]) == "characters"
    assert units_of(["The Panthers defense (黑豹)", "308 points"]) == "words"
