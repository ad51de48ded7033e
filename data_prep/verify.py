"""Check a prepared directory against its manifest: every file, every byte."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep import manifest
from data_prep.atomic import file_sha256
from data_prep.indexed import ShardReader
from data_prep.manifest import FileEntry, Manifest, ShardEntry
from runtime.errors import UserError

_CHUNK = 1 << 24  # tokens looked at together


def verify_directory(directory: Path, beat: Callable[[], None] = lambda: None) -> list[str]:
    """Every problem of a directory, a line each that names the file; empty means sound.

    beat: called after each file. Raises UserError where the manifest itself cannot be read.
    """
    return list(problems_of(directory, manifest.load(directory), beat))


def problems_of(
    directory: Path, listed: Manifest, beat: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Yield the problems of a directory's files, cheapest checks first."""
    own = manifest.fingerprint(listed.plan, listed.tokenizer.sha256, listed.shards)
    if own != listed.fingerprint:
        yield f"{directory / manifest.NAME}: changed since it was written (fingerprint differs)"
    yield from _totals(directory, listed)
    files = [*listed.files(), *_decisions(directory, listed)]
    named = set()
    for path, problem in _size_problems(directory, files):
        named.add(path)
        yield problem
    for entry in files:
        path = directory / entry.file
        beat()
        if path not in named and file_sha256(path) != entry.sha256:
            named.add(path)
            yield f"{path}: its content changed (SHA-256 differs); prepare the data again"
    for shard in listed.shards:
        pair = {directory / shard.file, directory / shard.index.file}
        if not pair & named:
            yield from _structure(directory, listed, shard)


def size_problems(directory: Path, listed: Manifest) -> Iterator[str]:
    """Yield the files that are missing or of another size than the manifest says."""
    return (problem for _, problem in _size_problems(directory, listed.files()))


def _size_problems(directory: Path, files: Sequence[FileEntry]) -> Iterator[tuple[Path, str]]:
    for entry in files:
        path = directory / entry.file
        try:
            size = path.stat().st_size
        except OSError:
            yield path, f"{path}: is missing; prepare the data again"
            continue
        if size != entry.bytes:
            yield path, f"{path}: has {size} bytes, expected {entry.bytes}; prepare the data again"


def _decisions(directory: Path, listed: Manifest) -> list[FileEntry]:
    """The files of what rules left out; none where the list of units is damaged itself."""
    try:
        units = manifest.load_units(directory, listed) or []
    except UserError:
        return []
    return [unit.dropped for unit in units if unit.dropped]


def _totals(directory: Path, listed: Manifest) -> Iterator[str]:
    path = directory / manifest.NAME
    for name in ("documents", "tokens"):
        total = getattr(listed, name)
        by_shard = sum(getattr(shard, name) for shard in listed.shards)
        by_split = sum(getattr(counts, name) for counts in listed.splits.values())
        by_source = sum(getattr(source, name) for source in listed.sources)
        if not total == by_shard == by_split == by_source:
            yield (
                f"{path}: {name} do not add up: {total} in all, {by_shard} in shards, "
                f"{by_split} in splits, {by_source} in sources"
            )


def _structure(directory: Path, listed: Manifest, shard: ShardEntry) -> Iterator[str]:
    """Check that a shard's index and tokens mean what the manifest says."""
    path = directory / shard.file
    try:
        reader = ShardReader(path.with_suffix(""))
    except UserError as error:
        yield str(error)
        return
    if reader.dtype != np.dtype(listed.dtype):
        yield f"{path}: holds {reader.dtype}, the manifest says {listed.dtype}"
    if (len(reader), len(reader.tokens)) != (shard.documents, shard.tokens):
        yield (
            f"{path}: has {len(reader)} documents and {len(reader.tokens)} tokens, expected "
            f"{shard.documents} and {shard.tokens}"
        )
        return
    if reader.sequences < len(reader) or (not listed.sentences and reader.sequences != len(reader)):
        yield (
            f"{path.with_suffix('.idx')}: lists {reader.sequences} sequences for {len(reader)} "
            f"documents, {'with' if listed.sentences else 'without'} a sentence index"
        )
    for start in range(0, len(reader.tokens), _CHUNK):
        part = reader.tokens[start : start + _CHUNK]
        if int(part.min()) < 0 or int(part.max()) >= listed.tokenizer.vocab_size:
            yield f"{path}: holds ids outside the vocabulary of {listed.tokenizer.vocab_size}"
            return
    if not np.all(reader.tokens[reader.ends - 1] == listed.tokenizer.eod_id):
        yield f"{path}: has documents that do not end with {listed.tokenizer.eod}"
