"""The config of a data preparation run, and the mistakes that concern several keys at once."""

from pathlib import Path
from typing import Literal

from data_prep.clean import CleanRule
from data_prep.decontaminate_config import DecontaminateConfig
from data_prep.dedup_config import DedupConfig
from data_prep.executor_config import RayOptions, SlurmOptions
from data_prep.input_config import Input, check_inputs
from data_prep.tokenizer_config import TokenizerChoice, check_tokenizer
from runtime.config import Config, Problem, key, section


class Split(Config):
    """Which documents are kept for validation."""

    valid: float = key(0.0, "fraction kept for validation", ge=0, lt=1)
    by: Literal["hash", "tail"] = key(
        "hash",
        "hash: each document's own hash decides; tail: the last fraction of every file",
    )


class Licence(Config):
    """Under which terms some inputs may be used."""

    path: str = key(..., "an input, or how the paths of some begin", min_length=1)
    licence: str = key(..., "its name, such as CC-BY-4.0", min_length=1)


class DataPrepConfig(Config):
    """One data preparation run: raw text in, one directory of shards out."""

    input: Input
    output: str = key(..., "directory to write", min_length=1)
    tokenizer: TokenizerChoice = section(TokenizerChoice, "how text becomes tokens")
    clean: tuple[CleanRule, ...] = key(
        (), "rules, in the order in which they see a document; each is `rule: NAME` and its keys"
    )
    decontaminate: DecontaminateConfig = section(
        DecontaminateConfig, "leave out documents that hold text of test sets"
    )
    dedup: DedupConfig = section(DedupConfig, "leave out what occurred before")
    split: Split = section(Split, "training and validation")
    licences: tuple[Licence, ...] = key(
        (), "for the data card: a list of {path, licence}, each path as in input.paths or its start"
    )
    workers: int = key(
        0,
        "processes, or with ray tasks at once; 0 is one for each core. Never changes the output",
        ge=0,
    )
    executor: Literal["local", "ray", "slurm"] = key(
        "local", "where the work is done: this machine, a Ray cluster, a Slurm array"
    )
    ray: RayOptions = section(RayOptions, "executor: ray")
    slurm: SlurmOptions = section(SlurmOptions, "executor: slurm")
    max_bad_fraction: float = key(
        0.01, "the run fails when more than this fraction of records is unreadable", ge=0, le=1
    )
    work_unit_bytes: int = key(
        32 << 20, "input that one shard is made from", unit="bytes", ge=1 << 10
    )

    def stated_licences(self) -> dict[str, str]:
        """Licence by path, as the sources are named: without the secrets of URLs."""
        from data_prep.files import shown  # not for `--help`

        return {shown(entry.path): entry.licence for entry in self.licences}

    @property
    def has_rules(self) -> bool:
        """Whether documents that can be read may be left out."""
        return bool(self.clean or self.dedup.is_on or self.decontaminate.is_on)


def check(config: DataPrepConfig) -> list[Problem]:
    """The problems that need several keys or the file system to see."""
    output = Path(config.output)
    problems = [*check_inputs(config.input, output), *check_tokenizer(config.tokenizer)]
    if config.decontaminate.is_on:
        from data_prep.decontaminate import check_decontaminate  # not for `--help`

        problems += check_decontaminate(config.decontaminate)
    if output.exists() and not output.is_dir():
        problems.append(Problem("output", f"{output} is a file; name a directory"))
    return problems
