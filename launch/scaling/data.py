"""Data for measuring: words drawn at random, made into shards by `python -m data_prep run`.

What the tokens are does not change a step's time, and no text has to be there. The same seed gives
the same bytes on every machine.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from runtime.errors import UserError
from runtime.yaml_documents import documents_to_yaml

TOKENS = 400_000
_DOCUMENT = 500  # tokens
_EOD = "<|endoftext|>"


def random_tokens(directory: Path, vocab_size: int) -> Path:
    """Shards of random tokens of so many kinds; made once, and found again."""
    home = directory / f"random-{vocab_size}"
    if (home / "shards" / "manifest.json").exists():
        return home / "shards"
    home.mkdir(parents=True, exist_ok=True)
    words = [f"w{number}" for number in range(1, vocab_size)]
    _write_tokenizer(home / "tokenizer.json", words)
    drawn = np.random.default_rng(0).integers(0, len(words), (TOKENS // _DOCUMENT, _DOCUMENT))
    with (home / "words.txt").open("w", encoding="utf-8") as file:
        for document in drawn:
            file.write(" ".join(words[number] for number in document) + "\n")
    settings = {
        "input": {"paths": [str(home / "words.txt")], "document": "line"},
        "output": str(home / "shards"),
        "tokenizer": {"path": str(home / "tokenizer.json")},
        "split": {"valid": 0.0},
    }
    (home / "data.yaml").write_text(documents_to_yaml([settings]), encoding="utf-8")
    command = [sys.executable, "-m", "data_prep", "run", str(home / "data.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{home}: random data cannot be made: {''.join(last)}")
    return home / "shards"


def _write_tokenizer(path: Path, words: list[str]) -> None:
    """A tokenizer of whole words, in the form of the tokenizers package."""
    special = {
        "id": 0,
        "content": _EOD,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    vocab = {_EOD: 0} | {word: number for number, word in enumerate(words, start=1)}
    content = {
        "version": "1.0",
        "added_tokens": [special],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": _EOD},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
