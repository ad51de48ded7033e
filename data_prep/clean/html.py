"""HTML to the text that people read in it."""

import re
from typing import Any, ClassVar, Literal

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from runtime.config import key

_HEAD = 4096  # characters in which a page shows that it is HTML
_DOCUMENT = re.compile(r"<!doctype\s+html|<html[\s>]|<head[\s>]|<body[\s>]", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:div|p|br|span|table|tr|td|ul|ol|li|h[1-6]|a|article|section|nav|script|style|meta"
    r"|link|img)(?=[\s>/])[^<>]{0,500}>",
    re.IGNORECASE,
)
_TAGS = 4  # Markdown and prose about HTML have a few


class Html(Rule):
    """The main text of pages that are HTML; other pages go on unchanged."""

    source: ClassVar[str] = "Barbaresi 2021, ACL demo 15 (trafilatura)"

    rule: Literal["html"] = key("html", "the main text of HTML pages")
    when: Literal["auto", "always"] = key("auto", "auto: only pages that look like HTML")
    favor: Literal["balance", "precision", "recall"] = key(
        "balance", "precision leaves out what is doubtful, recall keeps it"
    )
    tables: bool = key(True, "keep the text of tables")
    comments: bool = key(False, "keep readers' comments")
    links: bool = key(False, "keep the addresses of links")

    def apply(self, page: Page) -> str | Dropped:
        """The main text; `no_text` where none is found."""
        if not (page.text and (self.when == "always" or looks_like_html(page.text))):
            return page.text
        text = self._extracted(page)
        return text if text and text.strip() else self.drop("no_text", "characters 0")

    def needs(self) -> tuple[str, ...]:
        """The package that extracts, and the parser and the sanitiser that it uses."""
        return ("lxml", "lxml_html_clean", "trafilatura")

    def _extracted(self, page: Page) -> str | None:
        import trafilatura

        # An XML declaration with an encoding may not precede text that is decoded already.
        text: Any = trafilatura.extract(
            re.sub(r"^\s*<\?xml[^>]{0,200}\?>", "", page.text),
            url=page.url or None,
            favor_precision=self.favor == "precision",
            favor_recall=self.favor == "recall",
            include_comments=self.comments,
            include_tables=self.tables,
            include_links=self.links,
        )
        return None if text is None else str(text)


def looks_like_html(text: str) -> bool:
    """Whether the beginning of a text is an HTML document's or has several HTML tags."""
    head = text[:_HEAD]
    if "<" not in head:
        return False
    begins = head.lstrip()[:1] == "<"
    if begins and _DOCUMENT.search(head):
        return True
    return begins and len(_TAG.findall(head)) >= _TAGS
