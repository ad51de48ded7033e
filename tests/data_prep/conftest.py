"""The shortest way to prepare data through the real config loader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.config import DataPrepConfig, check
from data_prep.manifest import Manifest
from data_prep.pipeline import prepare
from runtime.config import load
from tests.data_prep.samples import make_texts, settings, write_jsonl

Prepare = Callable[..., Manifest]


@pytest.fixture
def run(tmp_path: Path) -> Prepare:
    """run(paths, output, key__subkey=value…) → manifest, through the real config loader."""

    def call(paths: Any, output: str = "out", **changes: Any) -> Manifest:
        paths = [str(p) for p in (paths if isinstance(paths, list) else [paths])]
        chosen = settings(**changes)
        if "path" in chosen["tokenizer"]:
            del chosen["tokenizer"]["train"]
        chosen["input"]["paths"] = paths
        chosen["output"] = str(tmp_path / output)
        file = tmp_path / "config.yaml"
        file.write_bytes(orjson.dumps(chosen))  # JSON is YAML
        return prepare(load(DataPrepConfig, file, (), check))

    return call


@pytest.fixture
def prepared(run: Prepare, tmp_path: Path) -> Path:
    """A directory with several shards in two splits."""
    run(write_jsonl(tmp_path / "in.jsonl", make_texts(150)), "prepared", split__valid=0.2)
    return tmp_path / "prepared"
