"""The keys of a data preparation run that say where documents come from, and their mistakes."""

import glob
from pathlib import Path
from typing import Any, Literal

import pydantic

from runtime.config import Config, Problem, key

BUILTIN = "builtin:python"  # stands for the text that every Python installation carries
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
Format = Literal["text", "jsonl"]


class Input(Config):
    """Where documents come from, and what one document is."""

    paths: tuple[str, ...] = key(
        ..., f"files, folders (read recursively) and globs; or {BUILTIN}", min_length=1
    )
    format: Literal["auto", "text", "jsonl"] = key(
        "auto", "auto goes by the file's name; .gz is unpacked in every format"
    )
    text_key: str = key("text", "field of a JSON object that holds the document", min_length=1)
    document: Literal["file", "paragraph", "line"] = key(
        "file", "what one document is in a text file; paragraphs are separated by blank lines"
    )

    sentences: bool = key(
        False, "also store where sentences end, for next-sentence and sentence-order prediction"
    )

    @pydantic.field_validator("paths", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def check_inputs(options: Input, output: Path) -> list[Problem]:
    """The mistakes that need the file system to see."""
    found: list[Problem] = []
    output = output.resolve()
    for text in options.paths:
        if text == BUILTIN:
            continue
        files = expand(text, options.format)
        if not files:
            found.append(Problem("input.paths", _why_nothing(text, options.format)))
        if Path(text).is_dir() and output.is_relative_to(Path(text).resolve()):
            found.append(
                Problem("output", f"{output} lies inside the input {text}; write elsewhere")
            )
        elif any(file.resolve().is_relative_to(output) for file in files):
            found.append(
                Problem("input.paths", f"{text} reads from the output directory; move one of them")
            )
        unclear = [f for f in files if format_of(f, options.format) is None]
        if unclear:
            found.append(
                Problem(
                    "input.format",
                    f"the name of {unclear[0]} does not tell its format; write text or jsonl",
                )
            )
    return found


def expand(text: str, wanted: str) -> list[Path]:
    """The files that one entry of `input.paths` stands for, sorted."""
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _inside(path, wanted)
    # pathlib's own glob refuses absolute patterns
    found: set[Path] = set()
    for match in map(Path, glob.glob(text, recursive=True)):  # noqa: PTH207
        found.update([match] if match.is_file() else _inside(match, wanted))
    return sorted(found)


def _inside(folder: Path, wanted: str) -> list[Path]:
    """The files of a folder and of all below it, also behind links; hidden ones are left out."""
    names = sorted(glob.glob("**/*", root_dir=folder, recursive=True))  # noqa: PTH207
    files = [folder / name for name in names if (folder / name).is_file()]
    once = {path.resolve(): path for path in reversed(files)}  # a link may lead to a loop
    return sorted(path for path in once.values() if format_of(path, wanted) is not None)


def _why_nothing(text: str, wanted: str) -> str:
    path = Path(text)
    if path.is_dir():
        names = " ".join(TEXT_SUFFIXES + JSONL_SUFFIXES)
        what = "files" if wanted != "auto" else f"files named *{{{names}}}[.gz]"
        return f"the folder {text} holds no {what}"
    if glob.has_magic(text):
        return f"{text} matches no file"
    return f"{text} does not exist"


def format_of(path: Path, wanted: str) -> Format | None:
    """The format to read a file in: the one asked for, else by its name, else None."""
    if wanted == "text":
        return "text"
    if wanted == "jsonl":
        return "jsonl"
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(JSONL_SUFFIXES):
        return "jsonl"
    return "text" if name.endswith(TEXT_SUFFIXES) else None
