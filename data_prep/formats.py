"""Which format a file is read in, by its name."""

from typing import Literal, get_args

from data_prep.files import Location, file_name
from data_prep.unpacking import SUFFIXES, without_suffix

Format = Literal["text", "jsonl"]
FORMATS: tuple[Format, ...] = get_args(Format)
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
BY_SUFFIX: dict[str, Format] = {
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
    **dict.fromkeys(JSONL_SUFFIXES, "jsonl"),
}
ENDINGS = f"*{{{' '.join(BY_SUFFIX)}}}[{'|'.join(SUFFIXES)}]"


def format_of(location: Location, wanted: str) -> Format | None:
    """The format to read a file in: the one asked for, else by its name, else None."""
    for format_ in FORMATS:
        if wanted == format_:
            return format_
    name = file_name(location)
    plain = without_suffix(name)
    return next((kind for end, kind in BY_SUFFIX.items() if plain.endswith(end)), None)
