"""Rules in the user's order, applied to one document after another."""

import hashlib
import importlib.metadata
import unicodedata
from collections.abc import Sequence
from typing import Any

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from runtime.errors import EXIT_BAD_INPUT, UserError

REVISION = 1  # of the rules' code; raised when the same keys decide otherwise


class Cleaner:
    """Applies rules in order; holds nothing but them, so that a document's fate is its own.

    Raises UserError, before any document is read, where a rule lacks its package or its list.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        identity(self.rules)  # finds every package and list that is missing

    def __call__(self, text: str, url: str = "") -> tuple[str | None, Dropped | None, list[str]]:
        """(cleaned text, None, the rules that changed it), or (None, why, the rules before)."""
        page = Page(text, url)
        changed: list[str] = []
        for rule in self.rules:
            outcome = rule.apply(page)
            if isinstance(outcome, Dropped):
                return None, outcome, changed
            if outcome == page.text:  # the words that were found serve the next rule, too
                continue
            changed.append(rule.name)
            if not outcome.strip():
                return None, rule.drop("nothing_left", "characters 0"), changed
            page = Page(outcome, url)
        return page.text, None, changed


def identity(rules: Sequence[Rule]) -> dict[str, Any]:
    """What decides the outcome, as JSON: keys, lists' contents, package and Unicode versions.

    Raises UserError where a package or a list is missing.
    """
    packages = sorted({package for rule in rules for package in rule.needs()})
    files = sorted({path for rule in rules for path in rule.files()})
    return {
        "revision": REVISION,
        "rules": [rule.model_dump(mode="json") for rule in rules],
        "packages": {package: _version(package, rules) for package in packages},
        "unicode": unicodedata.unidata_version,
        "files": {str(path): _sha256(path) for path in files},
    }


def _version(package: str, rules: Sequence[Rule]) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        names = ", ".join(dict.fromkeys(r.name for r in rules if package in r.needs()))
        raise UserError(
            f"clean: the rule {names} needs {package}; pip install 'ingot[data]'",
            status=EXIT_BAD_INPUT,
        ) from error


def _sha256(path: Any) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: the list cannot be read: {error.strerror or error}", status=EXIT_BAD_INPUT
        ) from error
