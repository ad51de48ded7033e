"""Which format a file is read in, by its name."""

from typing import Literal, get_args

from data_prep.files import Location, file_name
from data_prep.unpacking import SUFFIXES, compression_of, without_suffix

Format = Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow", "warc"]
FORMATS: tuple[Format, ...] = get_args(Format)
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
BY_SUFFIX: dict[str, Format] = {
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
    **dict.fromkeys(JSONL_SUFFIXES, "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".warc": "warc",
    ".wet": "warc",
}
ENDINGS = f"*{{{' '.join(BY_SUFFIX)}}}[{'|'.join(SUFFIXES)}]"


def format_of(location: Location, wanted: str) -> Format | None:
    """The format to read a file in: the one asked for, else by its name, else None."""
    for format_ in FORMATS:
        if wanted == format_:
            return format_
    name = file_name(location)
    plain = without_suffix(name)
    found = next((kind for end, kind in BY_SUFFIX.items() if plain.endswith(end)), None)
    # Parquet is read from its end, so a packed one cannot be read; its columns are packed anyway.
    return None if found == "parquet" and compression_of(name) else found
