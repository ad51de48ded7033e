"""Small texts that a model can learn from, made here so that no test needs files from elsewhere."""

import random
from pathlib import Path
from typing import Any

import yaml

from data_prep.config import DataPrepConfig
from data_prep.pipeline import prepare
from runtime.config import load

SUBJECTS = ("the cat", "a dog", "my neighbour", "the old clock", "老师", "one bird")
VERBS = ("sees", "follows", "forgets", "paints", "喜欢", "counts")
OBJECTS = ("the river", "a red door", "seven stones", "the night train", "北京", "itself")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return sentences of a tiny grammar: easy to learn, with a known floor."""
    rng = random.Random(seed)
    return [" ".join(map(rng.choice, (SUBJECTS, VERBS, OBJECTS))) + "." for _ in range(count)]


def prepare_corpus(
    directory: Path,
    documents: int = 400,
    seed: int = 0,
    valid: float = 0.1,
    tokenizer: dict[str, Any] | None = None,
) -> Path:
    """Prepare a corpus of short documents, by characters or as said; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "corpus.txt"
    rng = random.Random(seed)
    paragraphs = [
        " ".join(sentences(rng.randint(2, 9), seed=i + seed * 10_000)) for i in range(documents)
    ]
    text.write_text("\n\n".join(paragraphs), encoding="utf-8")
    config = directory / "data.yaml"
    settings = {
        "input": {"paths": [str(text)], "document": "paragraph"},
        "output": str(directory / "data"),
        "tokenizer": {"train": tokenizer or {"kind": "char"}},
        "split": {"valid": valid},
        "workers": 1,
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    prepare(load(DataPrepConfig, config))
    return directory / "data"
