"""The keys of a data preparation run that say where its tasks run."""

import re
from typing import Any

import pydantic

from runtime.config import Config, key

_WORD = r"^[A-Za-z0-9_.:@/+-]*$"  # goes into a batch script


class RayOptions(Config):
    """A Ray cluster."""

    address: str = key("auto", "the cluster; auto: the one that this machine belongs to")
    retries: int = key(3, "how often a task whose node died runs again", ge=0)


class SlurmOptions(Config):
    """A Slurm array. Lines that Slurm reads are made of these alone."""

    partition: str = key("", "partition; empty: the cluster's default", pattern=_WORD)
    account: str = key("", "account; empty: the user's default", pattern=_WORD)
    qos: str = key("", "quality of service; empty: the default", pattern=_WORD)
    time: str = key("24:00:00", "limit of one array task", pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")
    memory: str = key("4G", "memory of one array task", pattern=r"^\d+[KMGT]?$")
    tasks: int = key(64, "array tasks at most; each takes every so-manieth unit", ge=1)
    at_once: int = key(0, "array tasks that run at the same time; 0: no limit", ge=0)
    poll_s: float = key(5.0, "how often to look for results", unit="seconds", gt=0)
    setup: tuple[str, ...] = key(
        (), "lines of bash before the work, such as `module load python`; run as written"
    )

    @pydantic.field_validator("setup", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return tuple(re.split(r"\n", value)) if isinstance(value, str) else value
