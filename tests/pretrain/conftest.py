from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.config import DataPrepConfig
from data_prep.pipeline import prepare
from runtime.config import load
from tests import tiny_run
from tests.corpus import prepare_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def prepare_again(corpus: Path) -> Callable[..., Path]:
    """Prepare the corpus's text once more, with another tokenizer or sentence index."""

    def prepared(directory: Path, tokenizer: dict[str, Any], *, sentences: bool = False) -> Path:
        settings = {
            "input": {
                "paths": [str(corpus.parent / "corpus.txt")],
                "document": "paragraph",
                "sentences": sentences,
            },
            "output": str(directory / "data"),
            "tokenizer": {"train": tokenizer},
            "split": {"valid": 0.1},
            "workers": 1,
        }
        path = directory / "data.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        prepare(load(DataPrepConfig, path))
        return directory / "data"

    return prepared


@pytest.fixture(scope="session")
def bert_corpus(tmp_path_factory: pytest.TempPathFactory, prepare_again: Any) -> Path:
    """The corpus by WordPiece, with its sentences."""
    options = {"kind": "wordpiece", "vocab_size": 110}
    return prepare_again(tmp_path_factory.mktemp("bert"), options, sentences=True)


@pytest.fixture(scope="session")
def fim_corpus(tmp_path_factory: pytest.TempPathFactory, prepare_again: Any) -> Path:
    """The corpus by byte-level BPE, with tokens for filling in."""
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    options = {"kind": "bpe", "vocab_size": 400, "extra_tokens": names}
    return prepare_again(tmp_path_factory.mktemp("fim"), options)


@pytest.fixture
def write_config(tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    """Write a config of a run that takes a second, changed by dotted keys."""

    def write(**changes: object) -> Path:
        return tiny_run.write_config(tmp_path / "tiny.yaml", tmp_path / "run", corpus, **changes)

    return write
