"""manifest.json: what a prepared directory holds. It is written last: without it nothing counts."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import orjson
import pydantic

from data_prep.atomic import write_atomic
from runtime.errors import UserError

NAME = "manifest.json"
SCHEMA: Literal[1] = 1
# Plain names only: a manifest from elsewhere must not point outside its directory.
_PLAIN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_HEX = r"^[0-9a-f]{64}$"


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Record):
    """A file of the directory, and what it must contain."""

    file: str = pydantic.Field(pattern=_PLAIN)
    bytes: int = pydantic.Field(ge=0)
    sha256: str = pydantic.Field(pattern=_HEX)


class ShardEntry(FileEntry):
    """One .bin file with its .idx beside it."""

    split: str = pydantic.Field(pattern=_PLAIN)
    documents: int = pydantic.Field(ge=0)
    tokens: int = pydantic.Field(ge=0)
    index: FileEntry
    unit: int = pydantic.Field(default=0, ge=0)
    origins: FileEntry | None = None  # where each document comes from


class TokenizerEntry(FileEntry):
    """The tokenizer that made the token ids."""

    config: FileEntry
    vocab_size: int = pydantic.Field(ge=1)
    eod: str
    eod_id: int = pydantic.Field(ge=0)


class Counts(_Record):
    """What came out of some documents."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0  # UTF-8, without the end-of-document tokens
    unknown_tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            text_bytes=self.text_bytes + other.text_bytes,
            unknown_tokens=self.unknown_tokens + other.unknown_tokens,
        )


class SourceEntry(Counts):
    """One input file, and what came out of it."""

    path: str
    bytes: int
    sha256: str = pydantic.Field(pattern=rf"{_HEX}|^$")  # "" where the file is remote:
    version: str = ""  # what its storage tells versions apart by
    dropped: dict[str, int]


class SegmentEntry(_Record):
    """Bytes [start, end) of a source, or rows where a format counts in rows."""

    source: int
    start: int
    end: int
    first_line: int  # lines of the source before this segment
    records: int
    bad: dict[str, int]


class UnitEntry(_Record):
    """What one unit was made from, and the file of what its rules left out."""

    segments: list[SegmentEntry]
    dropped: FileEntry | None


class Units(_Record):
    """units.json: the units of work, in order. Few readers of the data need it."""

    units: list[UnitEntry]


class Manifest(_Record):
    """The whole directory. `fingerprint` covers the plan, the tokenizer and every shard's bytes."""

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    fingerprint: str = pydantic.Field(pattern=_HEX)
    dtype: Literal["uint16", "int32"]
    documents: int
    tokens: int
    sentences: bool = False  # the sequences of the shards are sentences, not documents
    splits: dict[str, Counts]
    dropped: dict[str, int]
    tokenizer: TokenizerEntry
    quarantine: FileEntry
    units: FileEntry | None = None  # None: made by an earlier version
    changed: dict[str, int] = {}  # documents that a rule changed
    licences: dict[str, str] = {}  # of sources whose paths begin so
    shards: list[ShardEntry]
    sources: list[SourceEntry]
    plan: dict[str, Any]

    def of_split(self, split: str) -> list[ShardEntry]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def licence_of(self, path: str) -> str:
        """The licence that the config states for a source, by the longest path that fits it."""
        fits = [start for start in self.licences if path.startswith(start)]
        return self.licences[max(fits, key=len)] if fits else ""

    def files(self) -> list[FileEntry]:
        """Every file that the manifest vouches for."""
        found: list[FileEntry] = [self.tokenizer, self.tokenizer.config, self.quarantine]
        found += [self.units] if self.units else []
        for shard in self.shards:
            found += [shard, shard.index, *([shard.origins] if shard.origins else [])]
        return found


def fingerprint(plan: dict[str, Any], tokenizer: str, shards: list[ShardEntry]) -> str:
    """Identity of prepared data: any change of plan, tokenizer or token bytes changes it."""
    content = [plan, tokenizer, [[s.split, s.sha256, s.index.sha256] for s in shards]]
    return hashlib.sha256(to_json(content)).hexdigest()


def to_json(value: Any) -> bytes:
    """JSON with sorted keys, so that equal values are equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"


def save(manifest: Manifest, directory: Path) -> None:
    """Publish the manifest: the moment from which the directory counts as prepared."""
    write_atomic(directory / NAME, to_json(manifest.model_dump(by_alias=True)))


def load(directory: Path) -> Manifest:
    """Read and check a directory's manifest. Raises UserError naming what is wrong."""
    path = directory / NAME
    try:
        data = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(_absent(directory)) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); prepare the data again") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, this version reads {SCHEMA}; prepare again")
    try:
        return Manifest.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:200]  # an unknown key can be of any length
        raise UserError(f"{path}: {where}: {first['msg']}; prepare the data again") from error


def _absent(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory} does not exist; `python -m data_prep run` makes such a directory"
    if (directory / ".work").exists():
        return f"{directory} is not finished; run `python -m data_prep run` on its config again"
    return f"{directory} has no {NAME}: it is not a directory of prepared data"


def load_units(directory: Path, listed: Manifest) -> list[UnitEntry] | None:
    """The units that a directory was made in; None where an earlier version made it."""
    if listed.units is None:
        return None
    path = directory / listed.units.file
    try:
        return Units.model_validate_json(path.read_bytes()).units
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(f"{path}: cannot be read: {error}; prepare the data again") from error
