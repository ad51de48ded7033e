"""C4, FineWeb and the rule of lines: what trips each reason, and what just does not."""

import time
from pathlib import Path

import pytest

from data_prep.clean.c4 import C4
from data_prep.clean.expressions import REACH, check_expression
from data_prep.clean.fineweb import FineWeb
from data_prep.clean.lines import Lines
from tests.data_prep.clean.samples import cleaned, outcome, sentence

FIVE = "\n".join(f"Sentence number {n} stands here." for n in range(5))


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("This line ends as it should.", True),
        ("Does it end? It does!", True),
        ('She said "three words here"', True),
        ("This one does not end", False),
        ("This one trails off...", False),
        ("这一行有句号。", True),
        ("他说：“好的，就这样。”", True),
        ("这一行没有", False),
        ("Two words.", False),
        ("Now three words.", True),
        ("你好。", False),
        ("你好吗。", True),
        ("A word " + "x" * 1001 + " of 1,001.", False),
        ("A word " + "x" * 1000 + " of 1,000.", True),
        ("Please enable Javascript to see this.", False),
        ("Read our Privacy Policy before you go.", False),
        ("  Spaces around are taken off.  ", True),
    ],
)
def test_c4_keeps_lines_that_are_sentences(line: str, kept: bool) -> None:
    expected = f"{FIVE}\n{line.strip()}" if kept else FIVE
    assert cleaned(C4(), f"{FIVE}\n{line}\n") == expected


def test_c4_takes_out_citations() -> None:
    text = FIVE + "\nIt was shown[12] long ago[edit], they say.[citation needed]"
    assert cleaned(C4(), text) == FIVE + "\nIt was shown long ago, they say."
    assert cleaned(C4(remove_citations=False, require_terminal_mark=False), text) == text


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is here? Three is here!", 3),
        ("The U.S. has one, e.g. this one here.", 1),
        ('He said "yes." Then he left at 3.11 today.', 2),
        ("第一句。第二句！第三句？他说：“第四句。”第五句。", 5),
        ("Wait... what is that?", 2),
    ],
)
def test_c4_counts_sentences(text: str, sentences: int) -> None:
    assert outcome(C4(min_sentences=sentences), text) == "kept"
    assert outcome(C4(min_sentences=sentences + 1), text) == "few_sentences"


def test_c4_drops_pages(tmp_path: Path) -> None:
    assert outcome(C4(), FIVE + "\nHere is Lorem Ipsum for you.") == "page_phrase"
    assert outcome(C4(), FIVE + "\nint main() { return 0; } is code.") == "page_phrase"
    assert outcome(C4(), FIVE + "\nint main() {") == "kept"  # a line that goes says nothing
    bad = tmp_path / "bad.txt"
    bad.write_text("# words\nHam\nvery bad\n脏话\n", encoding="utf-8")
    rule = C4(bad_words=str(bad))
    assert outcome(rule, FIVE + "\nHamlet is a play.") == "kept"
    assert outcome(rule, FIVE + "\nHam is not.") == "bad_word"
    assert outcome(rule, FIVE + "\nThis is very bad indeed.") == "bad_word"
    assert outcome(rule, FIVE + "\n这句有脏话在里面。") == "bad_word"


def test_fineweb() -> None:
    rule = FineWeb()
    good = [sentence(n) for n in range(3)]
    menu = [sentence(n, end="") for n in range(22)]
    assert outcome(rule, "\n".join(good + menu)) == "kept"  # 3 / 25
    assert outcome(rule, "\n".join([*good, *menu, sentence(40, end="")])) == "terminal_lines"
    short = [f"{n:029d}." for n in range(67)]
    long = [f"{n:030d}." for n in range(33)]
    relaxed = FineWeb(max_newlines_per_word=1.0)
    assert outcome(relaxed, "\n".join(short + long)) == "kept"
    assert outcome(relaxed, "\n".join([*short, *long, "0."])) == "short_lines"
    once = [f"{n:099d}." for n in range(99)]
    assert outcome(relaxed, "\n".join([*once, once[0]])) == "kept"  # 100 / 10,000
    assert outcome(relaxed, "\n".join([*once[:98], once[0]])) == "duplicate_lines"
    lines = [f"word{n} other{n} third{n} and a much longer end{n}." for n in range(30)]
    assert outcome(FineWeb(max_newlines_per_word=0.107), "\n".join(lines)) == "newlines"
    assert outcome(FineWeb(max_newlines_per_word=0.108), "\n".join(lines)) == "kept"
    assert outcome(rule, " \n ") == "empty"
    chinese = "\n".join(
        f"第{n}句话的内容在这里，它说得很清楚也很明白，没有一点含糊，大家都懂。" for n in "一二三"
    )
    assert outcome(rule, chinese) == "kept"
    assert outcome(rule, chinese.replace("。", "，")) == "terminal_lines"


LINES = (
    "Share this\nA line that stays.\n\nBUY NOW TODAY\n"
    "12 34 56 a\nA line that stays.\n喜欢 请点赞\nok"
)


@pytest.mark.parametrize(
    ("keys", "gone"),
    [
        ({"drop_matching": [r"^Share\b", "点赞"]}, [0, 6]),
        ({"min_characters": 3}, [7]),
        ({"max_characters": 10}, [1, 3, 5]),
        ({"min_words": 3}, [0, 7]),
        ({"min_words": 4}, [0, 3, 7]),
        ({"max_uppercase": 0.9}, [3]),
        ({"max_digits": 0.8}, [4]),
        ({"max_digits": 0.9}, []),
        ({"duplicates": "drop"}, [5]),
    ],
)
def test_lines(keys: dict, gone: list[int]) -> None:
    lines = LINES.split("\n")
    expected = "\n".join(line for at, line in enumerate(lines) if at not in gone)
    assert cleaned(Lines(**keys), LINES) == expected


def test_pages_that_lose_too_much() -> None:
    text = "Share one two\nthis stays here with me\n"  # 3 of 8 words go
    for most, expected in ((0.375, "kept"), (0.374, "dropped_words")):
        rule = Lines(drop_matching=("Share",), max_dropped_words=most)
        assert outcome(rule, text) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b",
        r"(?:a*)*b",
        r"(\w+\s?)*x",
        r"(a|b+)+c",
        r"a.*b.*c.*d",
        r"((x+x+)+y)",
        r"x(?=(a+)+b)",
    ],
)
def test_expressions_that_can_take_for_ever(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"very|for ever"):
        check_expression(pattern)


@pytest.mark.parametrize("pattern", ["", "a*", "x?", "^", "["])
def test_expressions_that_are_mistakes(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"empty string|no regular"):
        check_expression(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\s*(Share|Tweet)\b.*$",
        r"cookie.*policy",
        r"(?:\d{1,3}\.){3}\d+",
        r"(?:ab?){2}c+",
        r"(?>a+)b",
    ],
)
def test_expressions_that_are_fine(pattern: str) -> None:
    assert check_expression(pattern) == pattern
    started = time.process_time()
    rule = Lines(drop_matching=(pattern,))
    for character in "a1 c":
        assert cleaned(rule, (character * 3000 + "\n") * 20 + "end of it") is not None
    assert time.process_time() - started < 30


def test_only_the_beginning_of_a_line_is_searched() -> None:
    rule = Lines(drop_matching=("needle",))
    assert cleaned(rule, "keep\n" + "x" * (REACH - 6) + "needle") == "keep"
    long = "keep\n" + "x" * (REACH - 5) + "needle"
    assert cleaned(rule, long) == long
