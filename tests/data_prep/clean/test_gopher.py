import pytest

from data_prep.clean import Rule
from data_prep.clean.gopher_quality import GopherQuality
from data_prep.clean.gopher_repetition import GopherRepetition, _repeated
from data_prep.clean.page import Page
from data_prep.clean.words import split_words
from tests.data_prep.clean.samples import WORDS, outcome, sentence

FIFTY = " ".join(WORDS[:50])


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({}, FIFTY, "kept"),
        ({}, " ".join(WORDS[:49]), "few_words"),
        ({}, " ".join(WORDS[:49]) + " , . ;", "few_words"),  # marks are no words to read
        ({"max_words": 50}, FIFTY, "kept"),
        ({"max_words": 49}, FIFTY, "many_words"),
        ({}, "the and " + "ab " * 48, "short_words"),
        ({}, "the and " + "abc " * 48, "kept"),
        ({}, "the have " + "abcdefghijk " * 48, "long_words"),
        ({}, "the have " + "abcdefghij " * 48, "kept"),
        ({}, " ".join(WORDS[:54]) + " #" * 6, "kept"),  # 6 / 60 words
        ({}, FIFTY + " #" * 6, "hashes"),  # 6 / 56
        ({}, FIFTY + " …" * 5 + " end", "kept"),
        ({}, FIFTY + " x..." * 3 + " …" * 4 + " x", "ellipses"),  # 7 / 61
        ({}, " ".join(WORDS[:52]) + " 1234" * 13, "kept"),  # 52 / 65 have letters
        ({}, FIFTY + " 1234" * 13, "few_alphabetic_words"),
        ({}, "the and " + "apple " * 48, "kept"),
        ({}, "the the " + "apple " * 48, "few_stop_words"),
        ({"stop_words": ["apple"], "min_stop_words": 1}, "the " + "apple " * 50, "kept"),
        ({}, "\n".join(["- " + " ".join(WORDS[:10])] * 9 + [FIFTY]), "kept"),
        ({}, "\n".join(["  • " + " ".join(WORDS[:10])] * 10), "bullet_lines"),
        ({}, "\n".join([sentence(n) for n in range(7)] + [sentence(9) + ".."] * 3), "kept"),
        (
            {},
            "\n".join([sentence(n) for n in range(6)] + [sentence(9, 30) + ".."] * 3),
            "ellipsis_lines",
        ),
    ],
)
def test_quality(keys: dict, text: str, expected: str) -> None:
    assert outcome(GopherQuality(**keys), text) == expected


CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少的一是在了和有大这主中人上为们地个用工时要动国"


def test_quality_of_chinese_needs_its_own_keys() -> None:
    text = CHINESE + "产以我到他会作来分生，"
    assert outcome(GopherQuality(), text) == "short_words"
    keys = {"min_mean_word_length": 1, "stop_words": ["的", "是", "在"]}
    assert outcome(GopherQuality(**keys), text) == "kept"
    assert outcome(GopherQuality(**keys), text[:49]) == "few_words"


def test_stop_words_must_be_words() -> None:
    with pytest.raises(ValueError, match="'我们' is not one word"):
        GopherQuality(stop_words=("我们",))


def test_a_measure_is_told_with_its_threshold() -> None:
    refusal = GopherQuality().apply(Page("only four words here"))
    assert refusal == ("gopher_quality", "few_words", "words 4 < 50")


LONG = "\n".join(f"line {n} has words{n} of its{n} own{n} and ends{n}" for n in range(12))
SHORT = [f"x{n}y" for n in range(7)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG, "kept"),
        ("\n".join(["a", *SHORT, "a", "a" * 9, "a", "b" * 9, "a"]), "kept"),  # 3 / 13 lines
        ("\n".join(["a"] * 5 + SHORT), "duplicate_lines"),  # 4 / 12
        (LONG + "\n" + LONG.split("\n")[3], "kept"),
        (
            "\n".join([LONG, *LONG.split("\n")[2:6]]),
            "duplicate_line_characters",
        ),
        ("\n\n".join(["a"] * 5 + SHORT), "duplicate_paragraphs"),
        ("\n\n".join([LONG, "x", "y", "z", LONG]), "duplicate_paragraph_characters"),
    ],
)
def test_repeated_pieces(text: str, expected: str) -> None:
    assert outcome(GopherRepetition(), text) == expected


def several(n: int, share: float, unique: int = 400) -> str:
    """A text of different words, in which one n-gram of 5-letter words is so much of it."""
    gram = " ".join(["alpha", "bravo", "candy", "delta"][:n])
    total = unique * 7 - 1
    times = round(share * total / (1 - share * (len(gram) + 8) / len(gram)) / len(gram))
    filler = iter(f"w{at:05d}" for at in range(10_000))
    pieces = [piece for _ in range(times) for piece in (gram, next(filler))]
    return " ".join([*pieces, *(next(filler) for _ in range(unique))])


@pytest.mark.parametrize(("n", "limit"), [(2, 0.20), (3, 0.18), (4, 0.16)])
def test_the_most_frequent_ngram(n: int, limit: float) -> None:
    above, below = several(n, limit + 0.01), several(n, limit - 0.01)
    gram = " ".join(["alpha", "bravo", "candy", "delta"][:n])
    for text, expected in ((above, f"top_{n}gram"), (below, "kept")):
        share = text.count(gram) * len(gram) / len(text)
        assert (share > limit) == (expected != "kept")
        text += " zulu yankee zulu yankee"  # repeated, but less often
        others = {f"max_top_{m}gram": 1.0 for m in (2, 3, 4) if m != n}
        assert outcome(GopherRepetition(**others), text) == expected


def plain_duplicate(names: list[str], n: int) -> int:
    """Characters in n-grams seen before, one after another without overlaps."""
    seen, at, total = set(), 0, 0
    while at + n <= len(names):
        gram = tuple(names[at : at + n])
        if gram in seen:
            total, at = total + sum(map(len, gram)), at + n
        else:
            seen.add(gram)
            at += 1
    return total


@pytest.mark.parametrize("n", [5, 6, 7, 8, 9, 10])
def test_duplicate_ngrams_against_a_plain_count(n: int) -> None:
    base = [f"w{at}" for at in range(60)]
    text = " ".join(base + base[5:24] + ["x", "y"] + base[30:44] + base[8:13] * 3)
    share = plain_duplicate(split_words(text), n) / len(text)
    assert 0.1 < share < 0.6
    off = {f"max_duplicate_{m}grams": 1.0 for m in range(5, 11)}
    off |= {f"max_top_{m}gram": 1.0 for m in (2, 3, 4)}
    key = f"max_duplicate_{n}grams"
    assert outcome(GopherRepetition(**off | {key: share + 1e-9}), text) == "kept"
    assert outcome(GopherRepetition(**off | {key: share - 1e-9}), text) == f"duplicate_{n}grams"


def test_repeated_ngrams_are_those_that_occur_twice() -> None:
    page = Page("a b c a b c a b d a a a")
    names = split_words(page.text)
    for grams in _repeated(page):
        tuples = [tuple(names[at : at + grams.n]) for at in range(len(names) - grams.n + 1)]
        expected = [at for at, gram in enumerate(tuples) if tuples.count(gram) > 1]
        assert grams.starts.tolist() == expected
        assert [tuples.count(tuples[at]) for at in expected] == grams.counts[grams.numbers].tolist()


def test_chinese_that_repeats_itself() -> None:
    once = CHINESE
    assert outcome(GopherRepetition(), once) == "kept"
    assert outcome(GopherRepetition(), once * 3) == "duplicate_5grams"


@pytest.mark.parametrize("rule", [GopherQuality(), GopherRepetition()])
def test_published_thresholds_are_the_defaults(rule: Rule) -> None:
    numbers = [value for value in rule.model_dump().values() if isinstance(value, int | float)]
    published = {
        "gopher_quality": [50, 100_000, 3.0, 10.0, 0.1, 0.1, 0.9, 0.3, 0.8, 2],
        "gopher_repetition": [
            0.3,
            0.3,
            0.2,
            0.2,
            0.2,
            0.18,
            0.16,
            0.15,
            0.14,
            0.13,
            0.12,
            0.11,
            0.1,
        ],
    }
    assert numbers == published[rule.name]
