"""The keys that keep test sets out of training."""

from runtime.config import Config, key

MOST_WORDS = 64


class DecontaminateConfig(Config):
    """Test sets that no training document may repeat."""

    paths: tuple[str, ...] = key(
        (), "test files, in any input format (of plain text, each line is one text); none is off"
    )
    text_keys: tuple[str, ...] = key(
        ("text",), "fields or columns of the test files that hold texts", min_length=1
    )
    ngram: int = key(
        13, "a document goes that shares so many words in a row", unit="words", ge=1, le=MOST_WORDS
    )
    min_words: int = key(
        8,
        "a test text shorter than ngram is looked for as a whole, from this length on",
        unit="words",
        ge=1,
    )
    min_matches: int = key(1, "so many different runs must be shared", ge=1)

    @property
    def is_on(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.paths)
