"""What every cleaning rule is: its keys, and what it decides of one page."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from data_prep.clean.page import Page
from runtime.config import Config


class Dropped(NamedTuple):
    """Why a document is left out."""

    rule: str
    reason: str
    value: str  # what was measured and the threshold, as in "words 12 < 50"


class Rule(Config):
    """A rule with its thresholds; each subclass is one entry of `clean` in the config.

    A rule is a pure function of its keys and of the page.
    """

    source: ClassVar[str] = ""  # where the rule and its thresholds were published

    @property
    def name(self) -> str:
        """What the config calls the rule."""
        return str(type(self).model_fields["rule"].default)

    @abstractmethod
    def apply(self, page: Page) -> str | Dropped:
        """The text to go on with, or why the document is dropped."""

    def needs(self) -> tuple[str, ...]:
        """The optional distributions that it uses, whose versions decide the outcome."""
        return ()

    def files(self) -> tuple[Path, ...]:
        """The files that the outcome depends on."""
        return ()

    def drop(self, reason: str, value: str) -> Dropped:
        """This rule's refusal of a document."""
        return Dropped(self.name, reason, value)

    def above(self, reason: str, what: str, value: float, limit: float) -> Dropped:
        """A refusal because a measure is above its limit."""
        return self.drop(reason, f"{what} {number(value)} > {number(limit)}")

    def below(self, reason: str, what: str, value: float, limit: float) -> Dropped:
        """A refusal because a measure is below its limit."""
        return self.drop(reason, f"{what} {number(value)} < {number(limit)}")


def number(value: float) -> str:
    """A measure in few digits; never rounded onto the threshold beside it by less than 1e-6."""
    return str(value) if isinstance(value, int) else f"{float(value):.6g}"
