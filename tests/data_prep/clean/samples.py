"""Text that the tests of rules are made from."""

from data_prep.clean import Cleaner, Dropped, Rule

# 60 different words, most with letters, a stop word among each six.
_TEXT = """
alpha bridge the copper dragon engine and forest garden harbor of island jungle kernel to
lantern marble needle that orange pencil quarry with ribbon silver timber have umbrella valley
window be yellow zephyr anchor basket candle desert ember falcon glacier hollow insect jacket
kettle ladder meadow nectar oyster parcel quiver raven saddle tunnel upland vessel walnut yonder
zenith acorn beacon
"""
WORDS = _TEXT.split()


def sentence(start: int, words: int = 10, end: str = ".") -> str:
    """A line of some of the words that ends as asked."""
    return " ".join(WORDS[(start + 7 * at) % len(WORDS)] for at in range(words)) + end


def outcome(rule: Rule, text: str, url: str = "") -> str:
    """`kept` or the reason, of one rule."""
    cleaned, dropped, _ = Cleaner([rule])(text, url)
    assert (cleaned is None) == isinstance(dropped, Dropped)
    if dropped:
        assert dropped.rule == rule.name
        return dropped.reason
    return "kept"


def cleaned(rule: Rule, text: str, url: str = "") -> str | None:
    """The text that one rule leaves."""
    return Cleaner([rule])(text, url)[0]
