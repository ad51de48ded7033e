"""The plan of a run: which byte ranges of which inputs make which unit of work.

A plan depends on the inputs' content and on the config alone, never on workers or on time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from data_prep import tokenizer_load
from data_prep.atomic import write_atomic
from data_prep.clean import identity as clean_identity
from data_prep.config import DataPrepConfig
from data_prep.cutting import cut
from data_prep.cutting import weight as weight_of
from data_prep.files import Location
from data_prep.manifest import SCHEMA, to_json
from data_prep.sources import Segment, Source, describe
from data_prep.tokenizer_config import TrainTokenizer
from runtime.errors import UserError

WORK = ".work"
PLAN = "plan.json"  # the identity of a run that is going on
_LAYOUT = "layout.json"  # all that its workers need


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
    first_unit: int = 0  # units before it are in the shards already

    @property
    def output(self) -> Path:
        """The directory to write."""
        return Path(self.config.output)

    @cached_property
    def work(self) -> Path:
        """Where everything lies until it is complete: of this very plan, and of no other.

        What another run of the same output still writes, such as an array whose coordinator was
        killed, does not come here.
        """
        return self.output / WORK / hashlib.sha256(to_json(self.identity)).hexdigest()[:16]

    @property
    def contamination(self) -> Path:
        """The index of test sets, for workers."""
        return self.work / "contamination"

    @property
    def signatures(self) -> Path:
        """What finds duplicates, while the run goes on."""
        return self.work / "dedup"

    @property
    def kept_signatures(self) -> Path:
        """The same of a prepared directory, to compare inputs with that are added later."""
        return self.output / ".dedup"


def make_plan(
    config: DataPrepConfig,
    files: Sequence[tuple[str, Location]],
    previous: dict[str, Any] | None = None,
    contamination: dict[str, Any] | None = None,
) -> Plan:
    """Hash the inputs and cut them into units. Raises UserError for unreadable files.

    previous: the identity that the output was begun with. Its inputs come first, in their old
    order and so in the same units; those that are new make units of their own behind them.
    contamination: what says which test sets are kept out.
    """
    sources = _in_batches(describe(config, files), previous)
    units: list[Unit] = []
    for batch in range(1 + max(source.batch for source in sources)):
        segments = [
            segment
            for number, source in enumerate(sources)
            if source.batch == batch
            for segment in cut(number, source, config)
        ]
        units += _grouped(segments, sources, config.work_unit_bytes, len(units))
    if not units:
        raise UserError(f"the {len(sources)} input files hold no text: every one is empty")
    return Plan(config, tuple(sources), tuple(units), _identity(config, sources, contamination))


def _in_batches(sources: Sequence[Source], previous: dict[str, Any] | None) -> list[Source]:
    listed = previous["sources"] if previous else []
    old = {source["path"]: (n, source.get("batch", 0)) for n, source in enumerate(listed)}
    new_batch = 1 + max((batch for _, batch in old.values()), default=-1)
    known = [replace(s, batch=old[s.name][1]) for s in sources if s.name in old]
    known.sort(key=lambda source: old[source.name][0])
    return [*known, *(replace(s, batch=new_batch) for s in sources if s.name not in old)]


def _grouped(
    segments: Sequence[Segment], sources: Sequence[Source], limit: int, first: int
) -> list[Unit]:
    """Units of about `limit` bytes of text, of consecutive segments."""
    units: list[Unit] = []
    group: list[Segment] = []
    weight = 0
    for segment in segments:
        own = weight_of(sources[segment.source], segment)
        if group and weight + own > limit:
            units.append(Unit(first + len(units), tuple(group), weight))
            group, weight = [], 0
        group.append(segment)
        weight += own
    if group:
        units.append(Unit(first + len(units), tuple(group), weight))
    return units


def save_plan(plan: Plan) -> None:
    """Write the plan into the work directory, for workers that another process starts."""
    content = {
        "config": plan.config.model_dump(mode="json"),
        "sources": [
            asdict(s) | {"path": str(s.path), "is_local": isinstance(s.path, Path)}
            for s in plan.sources
        ],
        "units": [asdict(unit) for unit in plan.units],
        "identity": plan.identity,
        "first_unit": plan.first_unit,
    }
    # URLs may hold what nobody else is to see.
    write_atomic(plan.work / _LAYOUT, orjson.dumps(content), is_private=True)


def load_plan(output: Path) -> Plan:
    """The plan of a run that is going on in a directory. Raises UserError where there is none."""
    try:
        (path,) = (output / WORK).glob(f"*/{_LAYOUT}")
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{output} has no run going on; start it with `python -m data_prep run`"
        ) from error
    return Plan(
        config=DataPrepConfig.model_validate(content["config"] | {"output": str(output)}),
        sources=tuple(_source(entry) for entry in content["sources"]),
        units=tuple(
            Unit(u["index"], tuple(Segment(**s) for s in u["segments"]), u["weight"])
            for u in content["units"]
        ),
        identity=content["identity"],
        first_unit=content["first_unit"],
    )


def _source(entry: dict[str, Any]) -> Source:
    is_local = entry.pop("is_local")
    return Source(**entry | ({"path": Path(entry["path"])} if is_local else {}))


def _identity(
    config: DataPrepConfig, sources: Sequence[Source], contamination: dict[str, Any] | None
) -> dict[str, Any]:
    """What decides the output, as JSON. Workers and the error budget are not among it."""
    tokenizer: dict[str, Any]
    if config.tokenizer.path is None:
        train = config.tokenizer.train
        tokenizer = {"train": train.model_dump(exclude={"special_tokens", "extra_tokens"})}
        if train.extra_tokens or train.specials != TrainTokenizer(kind=train.kind).specials:
            tokenizer["train"]["specials"] = list(train.specials)
    else:
        tokenizer = tokenizer_load.identity(config.tokenizer)
    rules: dict[str, Any] = {}  # absent without, as in plans from before there were any
    if config.clean:
        rules["clean"] = clean_identity(config.clean)
    if contamination:
        rules["decontaminate"] = contamination
    if config.dedup.is_on:
        rules["dedup"] = config.dedup.model_dump()
    return {
        **rules,
        "schema": SCHEMA,
        "input": config.input.identity(),
        "tokenizer": tokenizer,
        "split": config.split.model_dump(),
        "work_unit_bytes": config.work_unit_bytes,
        "sources": [source.identity() for source in sources],
    }


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first difference of two identities in words, or None. Added inputs are none."""
    batches = 1 + max((source.get("batch", 0) for source in old["sources"]), default=0)
    kept = [source for source in new["sources"] if source.get("batch", 0) < batches]
    before, after = _flat(old), _flat({**new, "sources": kept})
    for name in [*after, *before]:
        was, now = before.get(name, "absent"), after.get(name, "absent")
        if was == now:
            continue
        if name.startswith("input file "):
            return f"{name} was removed" if now == "absent" else f"the content of {name} changed"
        return f"{name} was {was}, now {now}"
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
