"""Pages left out for where they are from."""

import functools
import re
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import pydantic

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from data_prep.clean.word_lists import check_list, listed
from runtime.config import key

_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,62})\.)*[a-z0-9_][a-z0-9_-]{0,62}")


class Url(Rule):
    """Pages whose address is on no list of domains, and has none of some strings in it."""

    source: ClassVar[str] = "as in Penedo et al. 2023, arXiv:2306.01116, section 3.1"

    rule: Literal["url"] = key("url", "leaves out addresses on a list; needs input with URLs")
    domains: tuple[str, ...] = key((), "domains to leave out, with all their subdomains")
    domains_file: str | None = key(None, "file of more domains, one a line; # begins a comment")
    substrings: tuple[str, ...] = key((), "drop addresses that contain one of these, in any case")
    substrings_file: str | None = key(None, "file of more substrings, one a line")
    missing: Literal["keep", "drop"] = key("keep", "what to do with pages of unknown address")

    @pydantic.field_validator("domains", "substrings", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("domains")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for domain in value:
            if not _HOST.fullmatch(_as_host(domain)):
                raise ValueError(f"{domain!r} is no domain; write it as in example.org")
        return value

    @pydantic.field_validator("substrings")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an empty string is in every address; leave it out")
        return value

    @pydantic.field_validator("domains_file", "substrings_file")
    @classmethod
    def _lists(cls, value: str | None) -> str | None:
        return None if value is None else check_list(value)

    @pydantic.model_validator(mode="after")
    def _has_any(self) -> "Url":
        given = self.domains or self.substrings or self.domains_file or self.substrings_file
        if not given and self.missing == "keep":
            raise ValueError("drops nothing; give domains, substrings or a file of them")
        return self

    def apply(self, page: Page) -> str | Dropped:
        """The page's text, or what its address has that is on a list."""
        if not page.url:
            return self.drop("no_url", "unknown") if self.missing == "drop" else page.text
        blocked = _domains(self.domains, self.domains_file)
        host = host_of(page.url)
        labels = host.split(".")
        for at in range(len(labels)):
            if ".".join(labels[at:]) in blocked:
                return self.drop("domain", ".".join(labels[at:]))
        substrings = _substrings(self.substrings, self.substrings_file)
        found = substrings.search(page.url.lower()) if substrings else None
        return self.drop("substring", found.group()) if found else page.text

    def files(self) -> tuple[Path, ...]:
        """The lists."""
        return tuple(Path(file) for file in (self.domains_file, self.substrings_file) if file)


def host_of(url: str) -> str:
    """The host of an address in lower case, without port, user and final period; else nothing."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname
    except ValueError:
        return ""
    return _as_host(host or "")


def _as_host(domain: str) -> str:
    """The form that addresses use: lower case, other scripts in punycode."""
    domain = domain.lower().rstrip(".")
    if domain.isascii():
        return domain
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return domain


@functools.lru_cache(maxsize=16)
def _domains(given: tuple[str, ...], file: str | None) -> frozenset[str]:
    more = listed(file) if file else ()
    return frozenset(map(_as_host, (*given, *more)))


@functools.lru_cache(maxsize=16)
def _substrings(given: tuple[str, ...], file: str | None) -> re.Pattern[str] | None:
    more = listed(file) if file else ()
    every = [re.escape(entry.lower()) for entry in (*given, *more)]
    return re.compile("|".join(every)) if every else None
