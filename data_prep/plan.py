"""The plan of a run: which byte ranges of which inputs make which unit of work.

A plan depends on the inputs' content and on the config alone, never on workers or on time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.atomic import file_sha256
from data_prep.config import DataPrepConfig
from data_prep.cutting import cut
from data_prep.cutting import weight as weight_of
from data_prep.files import Location
from data_prep.manifest import SCHEMA
from data_prep.sources import Segment, Source, describe
from data_prep.tokenizer import CONFIG_FILE
from data_prep.tokenizer_config import TrainTokenizer, tokenizer_file
from runtime.errors import UserError


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


def make_plan(config: DataPrepConfig, files: Sequence[tuple[str, Location]]) -> Plan:
    """Hash the inputs and cut them into units. Raises UserError for unreadable files."""
    sources = describe(config, files)
    segments = [
        segment for number, source in enumerate(sources) for segment in cut(number, source, config)
    ]
    limit = config.work_unit_bytes
    units: list[Unit] = []
    group: list[Segment] = []
    weight = 0
    for segment in segments:
        own = weight_of(sources[segment.source], segment)
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
    return {
        "schema": SCHEMA,
        "input": config.input.identity(),
        "tokenizer": tokenizer,
        "split": config.split.model_dump(),
        "work_unit_bytes": config.work_unit_bytes,
        "sources": [source.identity() for source in sources],
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
        content = {name: value for name, value in source.items() if name != "path"}
        flat[f"input file {source['path']}"] = content
    return flat
