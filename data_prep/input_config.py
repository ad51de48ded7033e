"""The keys of a data preparation run that say where documents come from, and their mistakes."""

import codecs
import glob
from pathlib import Path
from typing import Any, Literal

import pydantic

from data_prep import files
from data_prep.files import Location
from data_prep.formats import ENDINGS, FORMATS, format_of
from data_prep.saved_datasets import is_saved, saved_files
from runtime.config import Config, Problem, key
from runtime.errors import UserError

BUILTIN = "builtin:python"  # stands for the text that every Python installation carries
DATASETS = "datasets:"  # a dataset that the package of this name opens
_ASCII = "\n\r\t,\"'{}[]:\\ az09"
# Characters there depend on what came before, in bytes that elsewhere end a line or a field.
_STATEFUL = ("utf-7", "hz", "iso2022", "unicode_escape", "raw_unicode_escape", "punycode", "idna")


class Input(Config):
    """Where documents come from, and what one document is."""

    paths: tuple[str, ...] = key(
        ...,
        "files, folders (read recursively), globs, URLs such as s3://bucket/folder, "
        f"{DATASETS}NAME[/CONFIG][@SPLIT] of Hugging Face, or {BUILTIN}",
        min_length=1,
    )
    format: Literal["auto", "text", "jsonl", "csv", "tsv", "parquet", "arrow", "warc"] = key(
        "auto", "auto goes by the file's name; .gz .zst .bz2 .xz are unpacked"
    )
    text_key: str = key(
        "text",
        "field or column that holds the document; a.b is b inside a",
        min_length=1,
    )
    url_key: str = key(
        "url", "field or column that says where the document was published, if any", min_length=1
    )
    document: Literal["file", "paragraph", "line"] = key(
        "file", "what one document is in a text file; paragraphs are separated by blank lines"
    )
    encoding: str = key(
        "utf-8", "encoding of text, JSON lines and CSV, such as gb18030; a codec's name in Python"
    )
    sentences: bool = key(
        False, "also store where sentences end, for next-sentence and sentence-order prediction"
    )
    max_record_bytes: int = key(
        64 << 20, "a longer record is a bad one (too_long)", unit="bytes", ge=1
    )
    max_unpack_ratio: float = key(
        1000, "the run fails at a packed file that unpacks to more times its size", ge=1
    )

    @pydantic.field_validator("paths", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            name = codecs.lookup(value).name
            is_ascii = _ASCII.encode(name) == _ASCII.encode("ascii")
        except (LookupError, UnicodeError, TypeError):
            raise ValueError(
                f"{value!r} is no text encoding; write one that Python knows, such as utf-8, "
                "gb18030, big5, shift_jis, cp1252"
            ) from None
        if not is_ascii or name.startswith(_STATEFUL):
            raise ValueError(
                f"{value} cannot be read line by line; convert the files first: "
                f"iconv -f {value} -t UTF-8 FILE > NEW"
            )
        return name

    def identity(self) -> dict[str, Any]:
        """What of this decides the output; keys that older plans lack only where they differ."""
        own = self.model_dump(include={"text_key", "document"})
        if self.sentences:
            own["sentences"] = True
        for name in ("url_key", "encoding", "max_record_bytes"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                own[name] = value
        return own


def check_inputs(options: Input, output: Path) -> list[Problem]:
    """The mistakes that need the file system to see."""
    found: list[Problem] = []
    output = output.resolve()
    for text in options.paths:
        if text == BUILTIN or text.startswith(DATASETS):
            continue
        try:
            locations = expand(text, options.format)
        except UserError as error:
            found.append(Problem("input.paths", str(error)))
            continue
        if not locations:
            found.append(Problem("input.paths", _why_nothing(text, options.format)))
        found += _overlaps(text, locations, output)
        unclear = [place for place in locations if format_of(place, options.format) is None]
        if unclear:
            found.append(
                Problem(
                    "input.format",
                    f"the name of {files.shown(unclear[0])} does not tell its format; "
                    f"write one of {', '.join(FORMATS)}",
                )
            )
    return found


def _overlaps(text: str, locations: list[Location], output: Path) -> list[Problem]:
    if files.is_remote(text):
        return []
    folder = files.local_path(text)
    if folder.is_dir() and output.is_relative_to(folder.resolve()):
        return [Problem("output", f"{output} lies inside the input {text}; write elsewhere")]
    local = [place for place in locations if isinstance(place, Path)]
    if any(place.resolve().is_relative_to(output) for place in local):
        told = f"{text} reads from the output directory; move one of them"
        return [Problem("input.paths", told)]
    return []


def expand(text: str, wanted: str) -> list[Location]:
    """The files that one entry of `input.paths` stands for, sorted.

    Raises UserError where a storage cannot be asked.
    """
    if files.is_remote(text):
        urls = files.listed(text)
        return [url for url in urls if url == text or format_of(url, wanted) is not None]
    path = files.local_path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return list(_inside(path, wanted))
    # pathlib's own glob refuses absolute patterns
    found: set[Path] = set()
    for match in map(Path, glob.glob(str(path), recursive=True)):  # noqa: PTH207
        found.update([match] if match.is_file() else _inside(match, wanted))
    return sorted(found)


def _inside(folder: Path, wanted: str) -> list[Path]:
    """The files of a folder and of all below it, also behind links; hidden ones are left out."""
    if is_saved(folder):
        return saved_files(folder)
    # pathlib's own glob does not follow links to folders, and gives hidden files
    names = sorted(glob.glob("**/*", root_dir=folder, recursive=True))  # noqa: PTH207
    inner = [folder / name for name in names if (folder / name).is_file()]
    once = {path.resolve(): path for path in reversed(inner)}  # a link may lead to a loop
    return sorted(path for path in once.values() if format_of(path, wanted) is not None)


def _why_nothing(text: str, wanted: str) -> str:
    path = files.local_path(text)
    what = "files" if wanted != "auto" else f"files named {ENDINGS}"
    if files.is_remote(text):
        return f"{files.shown(text)} holds no {what}"
    if path.is_dir():
        return f"the folder {text} holds no {what}"
    if glob.has_magic(text):
        return f"{text} matches no file"
    return f"{text} does not exist"
