"""Folders that `save_to_disk` of Hugging Face datasets wrote: which of their files are data.

Only names of files inside the folder are believed.
"""

from pathlib import Path
from typing import Any

import orjson

from runtime.errors import EXIT_BAD_INPUT, UserError

_SPLITS, _STATE = "dataset_dict.json", "state.json"
_FIRST_CHOICE = "train"


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return (folder / _SPLITS).is_file() or (
        (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file()
    )


def saved_files(folder: Path, split: str = "") -> list[Path]:
    """The Arrow files of a split, in their order; of `train` where none is named.

    Raises UserError for a split that is not there, and for names that lead out of the folder.
    """
    if (folder / _SPLITS).is_file():
        names = _strings(folder / _SPLITS, "splits")
        folder = folder / _inner(folder, chosen_split(str(folder), names, split))
    elif split:
        raise UserError(f"{folder} is one split; write it without @{split}", status=EXIT_BAD_INPUT)
    state = folder / _STATE
    entries = _field(state, "_data_files")
    found = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    files = [folder / _inner(folder, str(name)) for name in found]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, which {state} names; save the dataset again")
    return files


def chosen_split(name: str, splits: list[str], wanted: str) -> str:
    """The split to read: the wanted one, else `train`, else the only one."""
    if wanted in splits:
        return wanted
    if not wanted and _FIRST_CHOICE in splits:
        return _FIRST_CHOICE
    if not wanted and len(splits) == 1:
        return splits[0]
    what = f"has no split {wanted!r}" if wanted else "has no train split"
    raise UserError(
        f"{name} {what}; write datasets:{name}@SPLIT with one of {', '.join(splits)}",
        status=EXIT_BAD_INPUT,
    )


def _inner(folder: Path, name: str) -> str:
    if name != Path(name).name or name in ("", ".", ".."):
        raise UserError(f"{folder} names {name!r}, which is outside of it; it is not read")
    return name


def _strings(path: Path, key: str) -> list[str]:
    return [str(value) for value in _field(path, key)]


def _field(path: Path, key: str) -> list[Any]:
    try:
        value = orjson.loads(path.read_bytes())[key]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); save the dataset again") from error
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} is no list; save the dataset again")
    return value
