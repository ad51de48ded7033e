"""Numbers as people write and read them: 300B tokens, 12.3 days. Imports no torch."""

import re
from decimal import Decimal

from runtime.errors import EXIT_BAD_INPUT, UserError

_UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
_NUMBER = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)\s*([KkMBGT]?)")
_MOST = 10**18  # all text there is has fewer tokens, and a Decimal has 28 digits
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parse_count(text: str, name: str) -> int:
    """`300B`, `1.5T`, `10M`, `1e9` or `4_096` → a whole number, exactly.

    Raises UserError (status 2) naming the option `name`.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"{name}: got {text[:40]!r}, expected a number such as 300B, 1.5T, 10M or 4096",
            status=EXIT_BAD_INPUT,
        )
    number = Decimal(re.sub("[_,]", "", found[1])).scaleb(_UNITS[found[2].upper()])
    if number > _MOST or number < 1 or number != number.to_integral_value():
        raise UserError(
            f"{name}: got {text[:40]!r}, expected a whole number from 1 to 1,000,000T",
            status=EXIT_BAD_INPUT,
        )
    return int(number)


def count_text(number: float) -> str:
    """Three digits and a unit: 1.5T, 300B, 4.19M; small numbers whole."""
    for unit, power in (("T", 12), ("B", 9), ("M", 6)):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g}{unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Seconds for a person: milliseconds to years."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 10 * _MINUTE:
        return f"{seconds:.3g} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} hours"
    if seconds < 1000 * _DAY:
        return f"{seconds / _DAY:.1f} days"
    return f"{seconds / (365.25 * _DAY):.1f} years"


def gigabytes(size: float) -> str:
    """Bytes as GB, with a digit after the point below 100."""
    return f"{size / 1e9:,.1f} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"
