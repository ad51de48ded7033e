"""Lists that users keep in files: one entry a line, `#` begins a comment."""

import functools
import re
from pathlib import Path

from data_prep.clean.words import HAN_BLOCKS
from runtime.errors import EXIT_BAD_INPUT, UserError

MAX_LIST_BYTES = 64 << 20
_HAN_OR_KANA = re.compile(
    "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN_BLOCKS) + "\u3041-\u30ff]"
)


def check_list(path: str) -> str:
    """The path, for a key's validator: raises ValueError where it is no list that can be read."""
    try:
        entries = listed(path)
    except UserError as error:
        raise ValueError(str(error)) from error
    if not entries:
        raise ValueError(f"{path} has no entries; write one a line")
    return path


@functools.lru_cache(maxsize=16)
def listed(path: str) -> tuple[str, ...]:
    """The different entries of a list, in lower case and in the file's order.

    Raises UserError where it cannot be read, is no UTF-8 text or larger than 64 MiB.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise UserError(f"{path}: larger than {MAX_LIST_BYTES} bytes", status=EXIT_BAD_INPUT)
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: the list cannot be read: {error.strerror or error}", status=EXIT_BAD_INPUT
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the list is not UTF-8 text (byte {error.start})", status=EXIT_BAD_INPUT
        ) from error
    entries = (line.partition("#")[0].strip().lower() for line in text.splitlines())
    return tuple(dict.fromkeys(entry for entry in entries if entry))


@functools.lru_cache(maxsize=16)
def matcher(entries: tuple[str, ...]) -> re.Pattern[str]:
    """An expression that finds any entry in lower-case text.

    Entries must stand as words, except Han and kana, which are written without spaces around.
    """
    unspaced = [re.escape(entry) for entry in entries if _HAN_OR_KANA.search(entry)]
    spaced = [re.escape(entry) for entry in entries if not _HAN_OR_KANA.search(entry)]
    branches = [rf"(?<!\w)(?:{'|'.join(spaced)})(?!\w)"] if spaced else []
    return re.compile("|".join(branches + unspaced) or r"(?!)")
