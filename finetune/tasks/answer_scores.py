"""How right an answer is: exact match and F1, by words or by characters. Torch-free.

By words as SQuAD counts (Rajpurkar et al. 2016, 2018), by characters as CMRC 2018 does (Cui et al.
2019). Both take the best of several right answers.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation)
# What CMRC 2018 takes for punctuation, and for a Chinese character.
_CHINESE_SIGNS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_UNIT = re.compile(r"[\u4e00-\u9fa5]|[^\W_\u4e00-\u9fa5]+(?:[.,'][^\W_\u4e00-\u9fa5]+)*|[^\w\s]")
_HAN = re.compile(r"[\u3400-\u9fff]")
_SHARE = 0.3  # of Han among a text's characters, from which on it is Chinese


class Score(NamedTuple):
    """Of one answer: both from 0 to 1."""

    exact_match: float
    f1: float


def score(answer: str, right: Sequence[str], units: str) -> Score:
    """Compare with every right answer; the best counts. No right answer: only "" is right.

    units: words, or characters.
    """
    of_one = _by_characters if units == "characters" else _by_words
    return _best(answer, right or [""], of_one)


def units_of(texts: Sequence[str]) -> str:
    """What to count in texts like these: characters where they are Chinese, else words."""
    count = sum(len(text) for text in texts)
    return "characters" if sum(len(_HAN.findall(t)) for t in texts) > _SHARE * count else "words"


def _best(answer: str, right: Sequence[str], of_one: Callable[[str, str], Score]) -> Score:
    scores = [of_one(answer, one) for one in right]
    return Score(max(s.exact_match for s in scores), max(s.f1 for s in scores))


def _by_words(answer: str, right: str) -> Score:
    found, gold = _words(answer), _words(right)
    common = (Counter(found) & Counter(gold)).total()
    return Score(float(found == gold), _f1(common, found, gold))


def _words(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_SIGNS)).split()


def _by_characters(answer: str, right: str) -> Score:
    found, gold = _bare(answer), _bare(right)
    pieces, wanted = _UNIT.findall(found), _UNIT.findall(gold)
    return Score(float(found == gold), _f1(_longest_run(pieces, wanted), pieces, wanted))


def _bare(text: str) -> str:
    return text.lower().strip().translate(_CHINESE_SIGNS)


def _longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of units that both have."""
    best, before = 0, [0] * (len(second) + 1)
    for one in first:
        row = [0] * (len(second) + 1)
        for i, other in enumerate(second, start=1):
            if one == other:
                row[i] = before[i - 1] + 1
                best = max(best, row[i])
        before = row
    return best


def _f1(common: int, found: Sequence[str], gold: Sequence[str]) -> float:
    if not found or not gold:  # no answer is right where there is none, and else quite wrong
        return float(list(found) == list(gold))
    return 2 * common / (len(found) + len(gold))
