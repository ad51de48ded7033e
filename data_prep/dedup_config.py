"""The keys of deduplication."""

from typing import Any, Literal

import pydantic

from runtime.config import Config, key, section


class _Switched(Config):
    """A section that is off unless asked for; `name: true` is short for its defaults, on."""

    enabled: bool = key(False, "whether this step runs")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class NearDuplicates(_Switched):
    """MinHash-LSH over the shingles of a document (Broder 1997; Leskovec et al., MMDS, ch. 3).

    Two documents of Jaccard similarity s meet in a band with probability 1 − (1 − s^rows)^bands.
    """

    min_similarity: float = key(
        0.7, "a later document is dropped from this estimated Jaccard similarity on", ge=0.1, le=1
    )
    ngram: int = key(5, "words in a shingle; a character of an unspaced script is a word", ge=1)
    bands: int = key(16, "groups of hashes of which one must agree for two to be compared", ge=1)
    rows: int = key(7, "hashes in a band", ge=1, le=64)

    @property
    def hashes(self) -> int:
        """How many hash functions a signature has."""
        return self.bands * self.rows


class ParagraphDuplicates(_Switched):
    """Paragraphs that an earlier document, or the same one further up, already had."""

    min_characters: int = key(
        100, "shorter paragraphs stay; runs of white space count as one", unit="characters", ge=1
    )
    unit: Literal["paragraph", "line"] = key(
        "paragraph", "what is compared: lines between blank lines, or each line of its own"
    )


class DedupConfig(Config):
    """Which repetitions are left out, across all inputs; the first one stays."""

    exact: bool = key(False, "drop documents equal to an earlier one but for white space")
    near: NearDuplicates = section(NearDuplicates, "drop documents much like an earlier one")
    paragraphs: ParagraphDuplicates = section(
        ParagraphDuplicates, "cut out paragraphs that occurred before"
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is to be done."""
        return self.exact or self.near.enabled or self.paragraphs.enabled
