"""The input files of a run, each with what tells whether its content is still the same."""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep import files
from data_prep.atomic import file_sha256, write_atomic
from data_prep.files import Location
from data_prep.formats import Format, format_of
from data_prep.input_config import BUILTIN, DATASETS, expand
from data_prep.unpacking import USUAL_RATIO, compression_of
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.redaction import HIDDEN

if TYPE_CHECKING:
    from data_prep.config import DataPrepConfig

_CACHE = ".inputs.json"
# What presigned URLs of S3, Google, CloudFront, OSS and Azure carry beside what is asked for.
_SIGNING = re.compile(
    r"(x-(amz|goog|oss)-.*|(aws|oss)?accesskeyid|googleaccessid|signature|expires|policy|"
    r"key-pair-id)$"
)
_AZURE_SIGNING = [
    "sig",
    "sv",
    "se",
    "st",
    "sp",
    "sr",
    "spr",
    "sip",
    "skoid",
    "sktid",
    "skt",
    "ske",
    "sks",
    "skv",
]


@dataclass(frozen=True)
class Source:
    """One input file."""

    name: str  # as people wrote it, without secrets; built-in text lies elsewhere than it says
    path: Location
    format: Format
    size: int  # bytes as stored
    mtime_ns: int
    sha256: str  # "" where the file is remote: it is not downloaded only to be hashed
    version: str = ""  # of a remote file, such as its ETag
    batch: int = 0  # inputs that were added to a prepared directory come in later batches

    @property
    def compression(self) -> str:
        """How the file is packed, or "": a packed file is readable from its start alone."""
        return compression_of(files.file_name(self.path))

    @property
    def usual_ratio(self) -> int:
        """About how many bytes of text one stored byte stands for."""
        return USUAL_RATIO[self.compression]

    def changed(self) -> bool:
        """Whether the file is gone or another one than when the run was planned."""
        try:
            found = files.stat(self.path, self.name)
        except UserError:
            return True
        return found != (self.size, self.mtime_ns, self.version)

    def identity(self) -> dict[str, Any]:
        """What names the content, as JSON."""
        own: dict[str, Any] = {"path": self.name, "format": self.format, "bytes": self.size}
        own |= {"version": self.version} if self.version else {"sha256": self.sha256}
        # Absent elsewhere, as in plans from before inputs could be added.
        return own | ({"batch": self.batch} if self.batch else {})


@dataclass(frozen=True)
class Segment:
    """Bytes [start, end) of a source; both ends lie between documents.

    Of a Parquet file they are bytes of the text's column, unpacked; elsewhere of the file itself.
    """

    source: int
    start: int
    end: int


def name_of(location: Location) -> str:
    """The name to report and store a location by: without secrets, another one for each.

    What a URL asks for is hidden, but tells files apart; twelve digits of its hash stand for it.
    A signature does not count: the same file, signed anew, keeps its name.
    """
    name = files.shown(location)
    if isinstance(location, Path) or not name.endswith(f"?{HIDDEN}"):
        return name
    parts = location.partition("?")[2].split("&")
    keys = [part.partition("=")[0].lower() for part in parts]
    signing = _AZURE_SIGNING if "sig" in keys else ()
    asked = "&".join(
        part
        for part, key in zip(parts, keys, strict=True)
        if key not in signing and not _SIGNING.match(key)
    )
    return f"{name}#{hashlib.sha256(asked.encode()).hexdigest()[:12]}" if asked else name


def input_files(config: "DataPrepConfig", builtin: Path) -> list[tuple[str, Location]]:
    """Every input file once, with the name to report it by, in the order of the config.

    Raises UserError where two files have one name, as the same URL for two users has.
    """
    found: dict[Location, str] = {}
    for text in config.input.paths:
        if text == BUILTIN:
            found.setdefault(builtin, f"{BUILTIN}/{builtin.name}")
            continue
        if text.startswith(DATASETS):
            from data_prep.readers.hub import dataset_files

            for name, path in dataset_files(text):
                found.setdefault(path.resolve(), name)
            continue
        for location in expand(text, config.input.format):
            place = location.resolve() if isinstance(location, Path) else location
            found.setdefault(place, name_of(location))
    seen: set[str] = set()
    for name in found.values():
        if name in seen:
            raise UserError(
                f"input.paths: two inputs are named {name}; keep one of them", status=EXIT_BAD_INPUT
            )
        seen.add(name)
    return [(name, location) for location, name in found.items()]


def describe(config: "DataPrepConfig", found: Sequence[tuple[str, Location]]) -> list[Source]:
    """Describe the inputs; a hash is taken again only where size or time of change differ.

    Raises UserError for files that cannot be read.
    """
    cache_path = Path(config.output) / _CACHE
    try:
        cache = orjson.loads(cache_path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        cache = {}

    def one(item: tuple[str, Location]) -> Source:
        name, location = item
        kind = format_of(location, config.input.format)
        assert kind is not None, "config.check refuses files of unclear format"
        stat = files.stat(location, name)
        digest = ""
        if isinstance(location, Path):
            known = cache.get(str(location))
            if known and known[:2] == [stat.size, stat.mtime_ns]:
                digest = str(known[2])
            else:
                digest = _hashed(location, name)
        return Source(name, location, kind, stat.size, stat.mtime_ns, digest, stat.version)

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        sources = list(pool.map(one, found))
    entries = {str(s.path): [s.size, s.mtime_ns, s.sha256] for s in sources if s.sha256}
    if entries != cache:
        write_atomic(cache_path, orjson.dumps(entries))
    return sources


def _hashed(path: Path, name: str) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from error
