"""Personal data replaced by masks."""

import datetime
import ipaddress
import re
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import pydantic

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from runtime.config import key

Kind = Literal["email", "ip", "phone", "cn_id", "card", "iban"]

# Each expression takes time linear in the text: what it repeats is bounded, or ends at characters
# that it does not repeat.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_IPV4 = re.compile(
    r"(?<![\w.:/-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)"
    r"(?![\d\w-])(?!\.\d)",
    re.ASCII,
)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}(?![\w:])", re.ASCII)
_CN_ID = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[0-9Xx](?![0-9A-Za-z])", re.ASCII)
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d{2,6}){2,4}(?![\w-])(?!\.\d)", re.ASCII)
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_CN_MOBILE = r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"
_INTERNATIONAL = r"\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
_NORTH_AMERICAN = r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[ .-]\d{4}"
_PHONE = re.compile(
    rf"(?<![\w.+/-])(?:{_CN_MOBILE}|{_INTERNATIONAL}|{_NORTH_AMERICAN})(?![\w-])(?!\.\d)", re.ASCII
)
_ROUNDS = 8
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS = "10X98765432"


class Pii(Rule):
    """Masks personal data that can be told by its form, and by check digits where it has some."""

    source: ClassVar[str] = (
        "GB 11643-1999 (resident identity), ISO/IEC 7812-1 (cards), ISO 13616-1 (IBAN), "
        "ITU-T E.164 (phones), RFC 4291 and the IANA registries (IP)"
    )

    rule: Literal["pii"] = key("pii", "masks personal data")
    kinds: tuple[Kind, ...] = key(
        ("email", "ip", "phone", "cn_id", "card", "iban"), "what to mask", min_length=1
    )
    email: str = key("<EMAIL>", "in place of e-mail addresses")
    ip: str = key("<IP>", "in place of public IPv4 and IPv6 addresses")
    phone: str = key("<PHONE>", "in place of phone numbers that show their form")
    cn_id: str = key("<ID>", "in place of Chinese resident identity numbers")
    card: str = key("<CARD>", "in place of payment card numbers")
    iban: str = key("<IBAN>", "in place of international bank account numbers")

    @pydantic.field_validator("kinds", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _masks_stay(self) -> "Pii":
        for kind in self.kinds:
            mask: str = getattr(self, kind)
            if self._masked(mask) != mask:
                raise ValueError(
                    f"the mask {mask!r} for {kind} would be masked itself; write another one"
                )
        return self

    def apply(self, page: Page) -> str | Dropped:
        """The text with masks; applied again it changes nothing."""
        text = page.text
        for _ in range(_ROUNDS):  # a mask is another neighbour than the number was
            before, text = text, self._masked(text)
            if text == before:
                break
        return text

    def _masked(self, text: str) -> str:
        for kind, expressions in _KINDS:
            if kind not in self.kinds:
                continue
            mask: str = getattr(self, kind)
            for needed, expression, holds in expressions:
                if needed.search(text):
                    text = expression.sub(partial(_replaced, mask, holds), text)
        return text


def _replaced(mask: str, holds: Callable[[str], bool], found: re.Match[str]) -> str:
    return mask if holds(found.group()) else found.group()


def is_public_ip(text: str) -> bool:
    """Whether it is an address that one machine of the whole internet has."""
    try:
        return ipaddress.ip_address(text.rstrip(":")).is_global
    except ValueError:
        return False


def is_resident_id(text: str) -> bool:
    """Whether 18 characters are a Chinese identity number: birthday and check digit are right."""
    try:
        born = datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text[:17], _ID_WEIGHTS, strict=True))
    return 1900 <= born.year < 2100 and _ID_CHECKS[total % 11] == text[17].upper()


def is_card(text: str) -> bool:
    """Whether 13 to 19 digits pass Luhn's check and are not one digit over and over."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits are right: 1 modulo 97, letters as 10 to 35."""
    text = text.replace(" ", "")
    moved = text[4:] + text[:4]
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def is_phone(text: str) -> bool:
    """Whether it has as many digits as phone numbers have, 8 to 15."""
    return 8 <= sum(map(str.isdigit, text)) <= 15


_Expression = tuple[re.Pattern[str], re.Pattern[str], Callable[[str], bool]]
# In this order, since a longer number may look like a shorter one. The first expression of each is
# quick to say that a text has none.
_LONG_NUMBER = re.compile(r"\d{2}[ -]?\d{2}[ -]?\d{2}", re.ASCII)
_KINDS: tuple[tuple[Kind, tuple[_Expression, ...]], ...] = (
    ("email", ((re.compile("@"), _EMAIL, bool),)),
    (
        "ip",
        (
            (re.compile(r"\d\.\d{1,3}\.\d", re.ASCII), _IPV4, is_public_ip),
            (re.compile(r"[23][0-9A-Fa-f]{3}:"), _IPV6, is_public_ip),
        ),
    ),
    ("iban", ((re.compile(r"[A-Z]{2}\d{2}", re.ASCII), _IBAN, is_iban),)),
    ("cn_id", ((re.compile(r"\d{17}", re.ASCII), _CN_ID, is_resident_id),)),
    ("card", ((_LONG_NUMBER, _CARD, is_card),)),
    ("phone", ((re.compile(r"\d{2}[ .)-]*\d{2}", re.ASCII), _PHONE, is_phone),)),
)
