"""The plan of a run: which byte ranges of which inputs make which unit of work.

A plan depends on the inputs' content and on the config alone, never on workers or on time.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from data_prep.atomic import file_sha256, write_atomic
from data_prep.config import DataPrepConfig
from data_prep.input_config import BUILTIN, Format, expand, format_of
from data_prep.manifest import SCHEMA
from data_prep.tokenizer import CONFIG_FILE
from data_prep.tokenizer_config import TrainTokenizer, tokenizer_file
from runtime.errors import UserError

GZIP_RATIO = 4  # text usually unpacks to about this many times its size


@dataclass(frozen=True)
class Source:
    """One input file."""

    name: str  # as people wrote it; where the file lies may differ for built-in text
    path: Path
    format: Format
    size: int
    mtime_ns: int
    sha256: str

    @property
    def is_gzip(self) -> bool:
        """Whether the file is packed, and so readable from its start alone."""
        return self.path.name.lower().endswith(".gz")


@dataclass(frozen=True)
class Segment:
    """Bytes [start, end) of a source; both ends lie between documents."""

    source: int
    start: int
    end: int


@dataclass(frozen=True)
class Unit:
    """What one shard is made from."""

    index: int
    segments: tuple[Segment, ...]
    weight: int  # bytes of text, estimated where the file is packed


@dataclass(frozen=True)
class Plan:
    """Everything that a unit needs to know, whichever process runs it."""

    config: DataPrepConfig
    sources: tuple[Source, ...]
    units: tuple[Unit, ...]
    identity: dict[str, Any]

    @property
    def output(self) -> Path:
        """The directory to write."""
        return Path(self.config.output)

    @property
    def work(self) -> Path:
        """Where finished units are noted until the manifest is written."""
        return self.output / ".work"


def make_plan(config: DataPrepConfig, files: Sequence[tuple[str, Path]]) -> Plan:
    """Hash the inputs and cut them into units. Raises UserError for unreadable files."""
    sources = _sources(config, files)
    segments = [
        segment
        for number, source in enumerate(sources)
        for segment in _cut(number, source, config)
        if segment.end > segment.start
    ]
    limit = config.work_unit_bytes
    units: list[Unit] = []
    group: list[Segment] = []
    weight = 0
    for segment in segments:
        own = (segment.end - segment.start) * (GZIP_RATIO if sources[segment.source].is_gzip else 1)
        if group and weight + own > limit:
            units.append(Unit(len(units), tuple(group), weight))
            group, weight = [], 0
        group.append(segment)
        weight += own
    if group:
        units.append(Unit(len(units), tuple(group), weight))
    if not units:
        raise UserError(f"the {len(sources)} input files hold no text: every one is empty")
    return Plan(config, tuple(sources), tuple(units), _identity(config, sources))


def input_files(config: DataPrepConfig, builtin: Path) -> list[tuple[str, Path]]:
    """Every input file once, with the name to report it by, in the order of the config."""
    found: dict[Path, str] = {}
    for text in config.input.paths:
        if text == BUILTIN:
            found.setdefault(builtin, f"{BUILTIN}/{builtin.name}")
            continue
        for path in expand(text, config.input.format):
            found.setdefault(path.resolve(), str(path))
    return [(name, path) for path, name in found.items()]


def _sources(config: DataPrepConfig, files: Sequence[tuple[str, Path]]) -> list[Source]:
    """Describe the inputs; a hash is taken again only where size or time of change differ."""
    cache_path = Path(config.output) / ".inputs.json"
    try:
        cache = orjson.loads(cache_path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        cache = {}

    def describe(item: tuple[str, Path]) -> Source:
        name, path = item
        kind = format_of(path, config.input.format)
        assert kind is not None, "config.check refuses files of unclear format"
        try:
            stat = path.stat()
            known = cache.get(str(path))
            if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
                digest = str(known[2])
            else:
                digest = file_sha256(path)
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error
        return Source(name, path, kind, stat.st_size, stat.st_mtime_ns, digest)

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        sources = list(pool.map(describe, files))
    entries = {str(s.path): [s.size, s.mtime_ns, s.sha256] for s in sources}
    if entries != cache:
        write_atomic(cache_path, orjson.dumps(entries))
    return sources


def _cut(number: int, source: Source, config: DataPrepConfig) -> list[Segment]:
    """Segments of about `work_unit_bytes`, cut between documents."""
    step = config.work_unit_bytes
    whole = source.format == "text" and config.input.document == "file"
    if whole or source.is_gzip or source.size <= step:
        return [Segment(number, 0, source.size)]
    by_paragraph = source.format == "text" and config.input.document == "paragraph"
    bounds = [0]
    with source.path.open("rb") as stream:
        for target in range(step, source.size, step):
            if target <= bounds[-1]:
                continue  # one document was longer than a unit
            stream.seek(target - 1)
            line = stream.readline()
            while by_paragraph and line:
                line = stream.readline()
                if not line.strip():
                    break
            bounds.append(stream.tell())
    bounds.append(source.size)
    return [Segment(number, a, b) for a, b in pairwise(bounds)]


def _identity(config: DataPrepConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """What decides the output, as JSON. Workers and the error budget are not among it."""
    tokenizer: dict[str, Any]
    if config.tokenizer.path is None:
        train = config.tokenizer.train
        tokenizer = {"train": train.model_dump(exclude={"special_tokens", "extra_tokens"})}
        if train.extra_tokens or train.specials != TrainTokenizer(kind=train.kind).specials:
            tokenizer["train"]["specials"] = list(train.specials)
    else:
        path = tokenizer_file(config.tokenizer.path)
        assert path is not None, "config.check refuses a missing tokenizer"
        beside = path.with_name(CONFIG_FILE)  # says which token begins, ends and masks
        tokenizer = {
            "sha256": file_sha256(path),
            "config_sha256": file_sha256(beside) if beside.exists() else None,
            "eod": config.tokenizer.eod,
        }
    reading = config.input.model_dump(include={"text_key", "document"})
    if config.input.sentences:  # absent elsewhere, as in plans from before there was a choice
        reading["sentences"] = True
    return {
        "schema": SCHEMA,
        "input": reading,
        "tokenizer": tokenizer,
        "split": config.split.model_dump(),
        "work_unit_bytes": config.work_unit_bytes,
        "sources": [
            {"path": s.name, "format": s.format, "bytes": s.size, "sha256": s.sha256}
            for s in sources
        ],
    }


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first difference of two identities in words, or None."""
    before, after = _flat(old), _flat(new)
    for name in [*after, *before]:
        was, now = before.get(name, "absent"), after.get(name, "absent")
        if was == now:
            continue
        if name.startswith("input file "):
            if "absent" in (was, now):
                return f"{name} was {'added' if was == 'absent' else 'removed'}"
            return f"the content of {name} changed"
        return f"{name} was {was}, now {now}"
    if [s["path"] for s in old["sources"]] != [s["path"] for s in new["sources"]]:
        return "the order of the input files changed"
    return None


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        else:
            flat[prefix] = value

    walk("", {k: v for k, v in identity.items() if k != "sources"})
    for source in identity.get("sources", []):
        content = (source["format"], source["bytes"], source["sha256"])
        flat[f"input file {source['path']}"] = content
    return flat
