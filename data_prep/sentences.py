"""Where sentences end, by rule: English and its like, Chinese and Japanese.

The rules know no grammar. They err where a person needs context ("in the U.S. The next …" stays
one sentence), and never change text: the sentences joined are the document.
"""

import re

_CJK = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_CLOSERS = "”’»』」）》〉】〕)\\]"
# Each kind of place where a sentence may end; possessive and from its
# first character, so that a long run of marks is looked at once.
_PLACES = re.compile(
    rf"""
      (?P<full> (?: (?<![。！？｡])[。！？｡]++ | (?<=[{_CJK}])[!?…]++ ) [。！？｡!?…]*+ [{_CLOSERS}]*+
                (?! [，、；：,;:] ) )
    | (?P<stop> (?<![.!?…])[.!?…]++ ["'{_CLOSERS}]*+ (?=\s) )
    | (?P<line> \n [^\S\n]*+ (?: (?=\n)                                   # a blank line
                | (?= (?: [-*+•] | \d{{1,3}}[.)] | \#{{1,6}} ) [^\S\n] )   # a list or heading
                | (?: ={{3,}} | -{{3,}} | ~{{3,}} | \^{{3,}} ) [^\S\n]*+ (?=\n) ) )  # underline
    | (?P<heading> ^\#{{1,6}}[^\S\n] [^\n]*+ (?=\n) )
    """,
    re.VERBOSE | re.MULTILINE,
)
_SPACE = re.compile(r"\s*")
_WORD_BEFORE = re.compile(r"[^\s\"'“‘«(\[{*_`]*\Z")
_LETTERS_WITH_DOTS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J  e.g  U.S  p.m
_LONGEST_WORD = 24  # enough for every abbreviation; keeps the look back short
_OPENERS = frozenset("\"'“‘«([{*_`<「『（《【")
_ABBREVIATION = re.compile(
    "mr|mrs|ms|mx|dr|prof|rev|hon|gen|col|capt|cmdr|lt|sgt|maj|gov|sen|rep|pres|st|mt|ft|messrs|"
    "vs|cf|viz|al|ca|approx|resp|ed|eds|trans|dept|univ|esp|incl|cp",
    re.IGNORECASE,
)
_BEFORE_A_NUMBER = re.compile(
    "nos?|figs?|eqs?|secs?|ch|vols?|pp?|art|refs?|tab|ver|v|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """Cut a text into its sentences; joined they are the text, and none is blank.

    White space between two goes with the first, but for a last plain space: byte-level
    tokenizers write it in front of a word, so that a text has the same tokens cut or whole. A
    text of white space alone is one sentence.
    """
    found = []
    start = at = 0
    while match := _PLACES.search(text, at):
        at = match.end()
        gap = _SPACE.match(text, at)
        following = gap.end() if gap else at
        if following == len(text):
            break
        if match.lastgroup == "stop" and not _ends_sentence(text, start, match, following):
            continue
        cut = following - (text[following - 1] == " " and following > at)
        at = following
        if cut > start and not text[start:cut].isspace():
            found.append(text[start:cut])
            start = cut
    found.append(text[start:])
    return found


def _ends_sentence(text: str, start: int, match: re.Match[str], following: int) -> bool:
    """Whether a sentence ends at a `.`, `!` or `?` with white space after it."""
    after = text[following]
    if after.islower() or not (after.isalnum() or after in _OPENERS):
        return False
    if match.group()[0] != "." or match.group().startswith(".."):
        return True
    before = _WORD_BEFORE.search(text, max(start, match.start() - _LONGEST_WORD), match.start())
    word = before.group() if before else ""
    if _LETTERS_WITH_DOTS.fullmatch(word) or _ABBREVIATION.fullmatch(word):
        return False
    if after.isdigit() and _BEFORE_A_NUMBER.fullmatch(word):
        return False
    is_number = word.isalnum() and len(word) <= 3 and not word.isalpha()
    before_number = text[max(start, match.start() - _LONGEST_WORD) : match.start() - len(word)]
    return not (is_number and not before_number.strip())  # "12. Item" of a list
