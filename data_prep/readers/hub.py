"""`datasets:NAME[/CONFIG][@SPLIT]`: what Hugging Face datasets opens, as its Arrow files.

NAME is a dataset of the hub or a local folder. The package downloads and converts it into its own
cache, where these files stay.
"""

from pathlib import Path
from typing import Any

from data_prep.input_config import DATASETS
from data_prep.saved_datasets import chosen_split, is_saved, saved_files
from runtime.errors import EXIT_BAD_INPUT, UserError


def dataset_files(entry: str) -> list[tuple[str, Path]]:
    """The Arrow files of one entry of `input.paths`, with names to report them by.

    Raises UserError where there is no such dataset or split, or the package is missing.
    """
    reference, _, split = entry.removeprefix(DATASETS).partition("@")
    if is_saved(Path(reference)):
        return [(str(file), file) for file in saved_files(Path(reference), split)]
    data = _load(reference, split)
    files = [Path(item["filename"]) for item in data.cache_files]
    if not files and len(data):
        raise UserError(f"{entry}: datasets kept it in memory; unset its IN_MEMORY_MAX_SIZE")
    return [(f"{DATASETS}{reference}@{data.split}/{file.name}", file) for file in files]


def _load(reference: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{DATASETS}{reference} needs datasets; pip install 'ingot[data]'",
            status=EXIT_BAD_INPUT,
        ) from error
    if "[" in split or "+" in split:
        raise UserError(
            f"{DATASETS}{reference}@{split}: name one whole split", status=EXIT_BAD_INPUT
        )
    problem = ""
    for name, config in _readings(reference):
        try:
            builder = datasets.load_dataset_builder(name, config)
            builder.download_and_prepare()
            wanted = chosen_split(reference, sorted(builder.info.splits or ()), split)
            return builder.as_dataset(split=wanted)
        except UserError:
            raise
        except Exception as error:  # of every library that reads one of its formats
            lines = str(error).splitlines() or [""]
            problem = problem or f"{type(error).__name__}: {lines[0][:200]}"
    raise UserError(f"{DATASETS}{reference}: cannot be opened ({problem})", status=EXIT_BAD_INPUT)


def _readings(reference: str) -> list[tuple[str, str | None]]:
    """What a reference may mean, in the order to try: name, then name and configuration."""
    if Path(reference).is_dir():
        return [(reference, None)]
    name, slash, config = reference.rpartition("/")
    split = [(name, config)] if slash else []
    if Path(name).is_dir() and slash:
        return [(name, config)]
    # The hub's names are OWNER/NAME, but a few old ones have no owner.
    return [*split] if reference.count("/") > 1 else [(reference, None), *split]
