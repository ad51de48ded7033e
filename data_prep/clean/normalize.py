"""Unicode as every later step expects it: one form, no mojibake, no invisible characters."""

import re
import unicodedata
from typing import ClassVar, Literal

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from runtime.config import key

# All control characters but tab and line feed; C1 ones too, which no text uses.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_ENDS = re.compile("\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
# Soft hyphen, zero-width space, word joiner, invisible operators, byte order mark, direction marks
# and overrides, interlinear marks, tags. Not the zero-width (non-)joiner, which Persian, Indic
# scripts and emoji need; those are removed only where they join nothing.
_INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_IDLE_JOINERS = re.compile("(?:^|(?<=\\s))[\u200c\u200d]+|[\u200c\u200d]+(?=\\s|$)")
_MAY_BE_MOJIBAKE = re.compile(
    "[\u0080-\u00ff\u0152-\u0178\u02c6\u02dc\u2013-\u203a\u20ac\u2122\ufffd]"
)
_ROUNDS = 8


class Normalize(Rule):
    """Repairs mojibake, then line ends, control and invisible characters, and the Unicode form."""

    source: ClassVar[str] = "Unicode Standard Annex 15; ftfy (Speer 2019) for mojibake"

    rule: Literal["normalize"] = key("normalize", "one Unicode form, no mojibake, no controls")
    form: Literal["NFC", "NFKC", "none"] = key(
        "NFC", "Unicode form; NFKC also turns full-width letters, ligatures and ² into plain ones"
    )
    mojibake: bool = key(True, "repair text that was decoded wrongly, such as â€™ for ’")
    line_ends: bool = key(True, "end every line with one line feed")
    control_characters: bool = key(True, "take out control characters, except tab and line feed")
    zero_width: bool = key(
        True, "take out invisible characters, except joiners between two characters"
    )

    def apply(self, page: Page) -> str | Dropped:
        """The text in its normal form; applied again it changes nothing."""
        text = page.text
        if text.isascii() and not _CONTROLS.search(text):
            return text
        for _ in range(_ROUNDS):  # what one repair uncovers, another one mends
            before, text = text, self._once(text)
            if text == before:
                break
        return text

    def needs(self) -> tuple[str, ...]:
        """The package that repairs mojibake, when it is asked for."""
        return ("ftfy",) if self.mojibake else ()

    def _once(self, text: str) -> str:
        if self.mojibake and _MAY_BE_MOJIBAKE.search(text):
            text = _repaired(text)
        if self.line_ends:
            text = _LINE_ENDS.sub("\n", text)
        if self.control_characters:
            text = _CONTROLS.sub(lambda found: found.group() if found.group() == "\r" else "", text)
        if self.zero_width:
            text = _IDLE_JOINERS.sub("", _INVISIBLE.sub("", text))
        return text if self.form == "none" else unicodedata.normalize(self.form, text)


def _repaired(text: str) -> str:
    """Each line that looks wrongly decoded, decoded as it was meant; lines are judged alone."""
    import ftfy
    from ftfy.badness import is_bad

    if not is_bad(text):
        return text
    lines = text.split("\n")
    return "\n".join(ftfy.fix_encoding(line) if is_bad(line) else line for line in lines)
