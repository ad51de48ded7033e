"""`python -m data_prep import`: .bin/.idx files of other programs as a prepared directory.

Files that have our form already are hard links, or copies where the disk is another or --copy is
given; the others are written anew. The result is verified like every other.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep import manifest
from data_prep.atomic import (
    aside,
    file_sha256,
    locked,
    sync_directory,
    write_atomic,
)
from data_prep.indexed import DIALECTS, ShardReader, ShardWriter, dtype_code, dtype_for
from data_prep.manifest import Counts, FileEntry, Manifest, ShardEntry, SourceEntry, TokenizerEntry
from data_prep.options import Parser, add_option
from data_prep.plan import difference
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer, SpecialTokens
from data_prep.tokenizer_config import TokenizerChoice, check_tokenizer
from data_prep.tokenizer_load import identity, place
from data_prep.verify import problems_of, verify_directory
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_PLAN = ".import.json"  # an import was begun here, and what it made is not verified yet
_QUARANTINE = "quarantine.jsonl"
_GROUP_TOKENS = 1 << 22  # converted at once


def main(arguments: Sequence[str]) -> int:
    """Import files; returns the exit status. Raises UserError for mistakes and damaged files."""
    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as done:  # --help
        return int(done.code or EXIT_OK)
    choice = TokenizerChoice(path=options.tokenizer, eod=options.eod)
    problem = next(iter(check_tokenizer(choice)), None)
    if problem:
        raise UserError(f"--tokenizer: {problem.message}", status=EXIT_BAD_INPUT)
    made = import_files(
        [Path(prefix.removesuffix(".bin").removesuffix(".idx")) for prefix in options.prefixes],
        Path(options.output),
        choice,
        Settings(options.dialect, options.split, options.append_eod, options.copy),
    )
    print(f"imported {options.output}: {made.documents:,} documents, {made.tokens:,} tokens")
    linked = len(_shared(Path(options.output), made))
    if linked:
        print(
            f"{linked} files are hard links of the originals: who changes those in place damages "
            "this data (the same command with --copy makes copies)"
        )
    return EXIT_OK


@dataclass(frozen=True)
class Settings:
    """Whose files they are, their split, whether documents get an end and files are copied."""

    dialect: str = "megatron"
    split: str = "train"
    append_eod: bool = False
    copy: bool = False


def import_files(
    prefixes: Sequence[Path], output: Path, choice: TokenizerChoice, settings: Settings
) -> Manifest:
    """Make a prepared directory of NAME.bin and NAME.idx pairs, and verify it.

    Raises UserError: damaged files, ids outside the vocabulary, documents without an end, an
    output that holds something else.
    """
    readers = [ShardReader(prefix, settings.dialect) for prefix in prefixes]
    hashes = [[file_sha256(r.bin_path), file_sha256(r.idx_path)] for r in readers]
    plan = _plan(readers, hashes, choice, settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made: {error.strerror}") from error
    with locked(output):
        found = _finished(output, plan)
        if found:
            if settings.copy:
                for path in _shared(output, found):
                    _place(path, path, is_copy=True)
            return found
        _begin(output, plan)
        place(choice, output)
        tokenizer = DocumentTokenizer(output, choice.eod)
        importer = _Importer(output, tokenizer, settings)
        shards, sources = [], []
        for number, (reader, sums) in enumerate(zip(readers, hashes, strict=True)):
            shard, own = importer.shard(number, reader, sums)
            shards.append(shard)
            sources += own
        is_by_sentence = any(reader.sequences != len(reader) for reader in readers)
        made = _manifest(output, plan, tokenizer, shards, sources, is_by_sentence)
        problem = next(problems_of(output, made), None)
        if problem:
            raise UserError(f"{problem} (the imported files were changed meanwhile?)")
        manifest.save(made, output)
        (output / _PLAN).unlink()
    return made


class _Importer:
    def __init__(self, output: Path, tokenizer: DocumentTokenizer, settings: Settings) -> None:
        self._output, self._settings = output, settings
        self._vocab_size, self._eod_id = tokenizer.vocab_size, tokenizer.eod_id
        self._eod, self._unknown_id = tokenizer.eod, tokenizer.unknown_id
        special = SpecialTokens(output)
        self._text_bytes = np.zeros(self._vocab_size, dtype=np.int64)
        self._text_bytes[special.ids] = [len(text) for text in special.utf8(special.ids)]
        self._text_bytes[self._eod_id] = 0

    def shard(
        self, number: int, reader: ShardReader, hashes: list[str]
    ) -> tuple[ShardEntry, list[SourceEntry]]:
        """Import one pair of files: what it became, and where that came from."""
        counts, without_end = self._look(reader)
        empty = int(np.count_nonzero(np.diff(reader.ends, prepend=0) == 0))
        if without_end and not self._settings.append_eod:
            raise UserError(
                f"{reader.bin_path}: {without_end:,} of {len(reader):,} documents do not end with "
                f"{self._eod}; add --append_eod, or name their end with --eod"
            )
        name = f"{self._settings.split}_{number:05d}"
        own = dtype_for(self._vocab_size)
        is_ours = (reader.dtype.name, reader.code) == (own, dtype_code(own)) and reader.is_plain
        if is_ours and not empty and not without_end:
            shard = self._linked(name, reader, hashes)
        else:
            shard = self._converted(name, reader)
        counts = counts.model_copy(update={"documents": shard.documents, "tokens": shard.tokens})
        paths = (reader.bin_path, reader.idx_path)
        return shard, [
            SourceEntry(
                path=str(path),
                bytes=path.stat().st_size,
                sha256=digest,
                dropped={"no_tokens": empty} if is_tokens and empty else {},
                **(counts if is_tokens else Counts()).model_dump(),
            )
            for path, digest, is_tokens in zip(paths, hashes, (True, False), strict=True)
        ]

    def _look(self, reader: ShardReader) -> tuple[Counts, int]:
        """Check every id; count the text, and the documents without an end."""
        text_bytes = unknown = 0
        for start in range(0, len(reader.tokens), _GROUP_TOKENS):
            part = reader.tokens[start : start + _GROUP_TOKENS]
            if int(part.min()) < 0 or int(part.max()) >= self._vocab_size:
                raise UserError(
                    f"{reader.bin_path}: holds ids from {int(part.min())} to {int(part.max())}, "
                    f"the tokenizer has {self._vocab_size}; name theirs, or mend --dialect"
                )
            text_bytes += int(self._text_bytes[part.astype(np.int64)].sum())
            if self._unknown_id is not None:
                unknown += int(np.count_nonzero(part == self._unknown_id))
        ends = reader.ends[np.diff(reader.ends, prepend=0) > 0]
        without_end = int(np.count_nonzero(reader.tokens[ends - 1] != self._eod_id))
        return Counts(text_bytes=text_bytes, unknown_tokens=unknown), without_end

    def _linked(self, name: str, reader: ShardReader, hashes: list[str]) -> ShardEntry:
        entries = []
        for path, digest in zip((reader.bin_path, reader.idx_path), hashes, strict=True):
            target = self._output / f"{name}{path.suffix}"
            _place(path.resolve(), target, self._settings.copy)
            entries.append(FileEntry(file=target.name, bytes=target.stat().st_size, sha256=digest))
        return ShardEntry(
            **entries[0].model_dump(),
            split=self._settings.split,
            documents=len(reader),
            tokens=len(reader.tokens),
            index=entries[1],
        )

    def _converted(self, name: str, reader: ShardReader) -> ShardEntry:
        with ShardWriter(self._output, name, self._settings.split, self._vocab_size) as writer:
            for first, last in _groups(reader.ends):
                start = int(reader.ends[first - 1]) if first else 0
                tokens = reader.tokens[start : int(reader.ends[last - 1])].astype(np.int64)
                ends = [reader.sequence_ends(document) for document in range(first, last)]
                writer.add_many(*self._with_ends(tokens, ends))
            return writer.finish()

    def _with_ends(
        self, tokens: npt.NDArray[np.int64], ends: list[npt.NDArray[np.int64]]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """Some documents and their sentences, with what is missing of end-of-document tokens."""
        parts, lengths, sentences, counts = [], [], [], []
        at = 0
        for own in ends:
            size = int(own[-1]) if len(own) else 0
            part = tokens[at : at + size]
            at += size
            sizes = np.diff(own, prepend=0)
            sizes = sizes[sizes > 0]
            if size and part[-1] != self._eod_id:
                part = np.append(part, self._eod_id)
                sizes[-1] += 1
            parts.append(part)
            lengths.append(len(part))
            sentences.append(sizes)
            counts.append(len(sizes))
        return (
            np.concatenate(parts),
            np.array(lengths, dtype=np.int64),
            np.concatenate(sentences),
            np.array(counts, dtype=np.int64),
        )


def _groups(ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of documents [first, last) of about so many tokens, at least one document each."""
    first = 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, start + _GROUP_TOKENS, side="right"))
        last = max(last, first + 1)
        yield first, last
        first = last


def _place(source: Path, target: Path, is_copy: bool) -> None:
    """Give a file a second name, or a copy where that is asked for or the disks differ."""
    temporary = aside(target)
    temporary.unlink(missing_ok=True)
    if is_copy or not _linked(source, temporary):
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # renaming to another name of the same file does nothing
    sync_directory(target.parent)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        return False
    return True


def _shared(output: Path, made: Manifest) -> list[Path]:
    """The files of shards that have another name elsewhere."""
    paths = [output / file for s in made.shards for file in (s.file, s.index.file)]
    return [path for path in paths if path.stat().st_nlink > 1]


def _plan(
    readers: Sequence[ShardReader],
    hashes: list[list[str]],
    choice: TokenizerChoice,
    settings: Settings,
) -> dict[str, Any]:
    paths = [path for reader in readers for path in (reader.bin_path, reader.idx_path)]
    digests = [digest for pair in hashes for digest in pair]
    return {
        "schema": manifest.SCHEMA,
        "import": {
            "dialect": settings.dialect,
            "split": settings.split,
            "append_eod": settings.append_eod,
        },
        "tokenizer": identity(choice),
        "sources": [
            {
                "path": str(path),
                "format": "megatron",
                "bytes": path.stat().st_size,
                "sha256": digest,
            }
            for path, digest in zip(paths, digests, strict=True)
        ],
    }


def _begin(output: Path, plan: dict[str, Any]) -> None:
    """Note that an import was begun; what an earlier one left unfinished is taken away."""
    path = output / _PLAN
    found = sorted(p for p in output.iterdir() if p.name != ".lock")
    if path.exists():
        for left in found:
            left.unlink()
    elif found:
        raise UserError(
            f"{output} holds other files (such as {found[0].name}); choose an empty directory"
        )
    write_atomic(path, manifest.to_json(plan))


def _finished(output: Path, plan: dict[str, Any]) -> Manifest | None:
    """What an earlier import made; none where it did not end, or left files that are not sound."""
    if not (output / manifest.NAME).exists():
        return None
    found = manifest.load(output)
    changed = difference(found.plan, plan)
    if (output / _PLAN).exists() and (changed or verify_directory(output)):
        return None  # it was killed before its end: `_begin` takes the rest away
    if changed:
        raise UserError(
            f"{output} was made from another plan: {changed}; choose another output "
            "or delete that directory"
        )
    (output / _PLAN).unlink(missing_ok=True)
    return found


def _manifest(
    output: Path,
    plan: dict[str, Any],
    tokenizer: DocumentTokenizer,
    shards: list[ShardEntry],
    sources: list[SourceEntry],
    is_by_sentence: bool,
) -> Manifest:
    write_atomic(output / _QUARANTINE, b"")
    entry = _file_entry(output / FILE)
    counts = Counts(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(source.text_bytes for source in sources),
        unknown_tokens=sum(source.unknown_tokens for source in sources),
    )
    empty = sum(source.dropped.get("no_tokens", 0) for source in sources)
    return Manifest(
        schema=manifest.SCHEMA,
        fingerprint=manifest.fingerprint(plan, entry.sha256, shards),
        dtype=dtype_for(tokenizer.vocab_size),
        documents=counts.documents,
        tokens=counts.tokens,
        sentences=is_by_sentence,
        splits={shards[0].split: counts},
        dropped={"no_tokens": empty} if empty else {},
        tokenizer=TokenizerEntry(
            **entry.model_dump(),
            config=_file_entry(output / CONFIG_FILE),
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            eod_id=tokenizer.eod_id,
        ),
        quarantine=_file_entry(output / _QUARANTINE),
        shards=shards,
        sources=sources,
        plan=plan,
    )


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(file=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m data_prep import",
        description="Make a verified directory of prepared data out of .bin/.idx files that "
        "Megatron-LM, GPT-NeoX, NeMo or DeepSpeed wrote. Options may be written with hyphens.",
        allow_abbrev=False,
    )
    parser.add_argument("prefixes", nargs="+", metavar="PREFIX", help="PREFIX.bin and PREFIX.idx")
    add_option(parser, "--output", required=True, metavar="DIR", help="the directory to write")
    add_option(parser, "--tokenizer", required=True, metavar="PATH", help="what made the token ids")
    add_option(parser, "--eod", metavar="TOKEN", help="ends a document; none is the tokenizer's")
    add_option(
        parser,
        "--append_eod",
        action="store_true",
        help="end the documents that have no end-of-document token with one",
    )
    add_option(
        parser, "--copy", action="store_true", help="copy files of our form instead of linking them"
    )
    add_option(parser, "--dialect", choices=tuple(DIALECTS), default="megatron", help="whose files")
    add_option(
        parser, "--split", choices=("train", "valid"), default="train", help="what they become"
    )
    return parser
