"""Tiny checkpoints and labelled files, and runs on them in this process."""

import json
import random
from pathlib import Path

import orjson
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.models import WordLevel

from finetune.__main__ import main
from model import build, preset, save_pretrained

END = "<|endoftext|>"
WORDS = [f"w{i}" for i in range(30)]
SIGNS = {"cat": ["miaow", "purr"], "dog": ["woof", "bark"], "cow": ["moo", "graze"]}


def word_tokenizer(*, appends_end: bool = False) -> Tokenizer:
    """One token per word. With `appends_end` a text ends in END, which pads as well."""
    vocab = [END, "<unk>", *WORDS, *(w for words in SIGNS.values() for w in words)]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END])
    if appends_end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, 0)]
        )
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Bytes and nothing else, so that any text can be said."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def checkpoint(
    directory: Path, tokenizer: Tokenizer | None = None, family: str = "llama", **shape
) -> Path:
    """A fresh model directory: two layers, a tokenizer, no padding token."""
    tokenizer = tokenizer or word_tokenizer()
    source = directory.parent / f"{directory.name}-tokenizer"
    source.mkdir(parents=True)
    tokenizer.save(str(source / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    values = {
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 2,
        "d_ff": 64,
        "max_seq_len": 64,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": end,
    }
    if family == "llama":
        values["n_kv_heads"] = 1
    name = "roberta-base" if family == "roberta" else f"{family}-tiny"
    config = preset(name, **{**values, **shape})
    save_pretrained(build(config), directory, tokenizer_dir=source)
    return directory


def animal_texts(count: int, seed: int = 0, longest: int = 20) -> list[dict[str, str]]:
    """Texts of random words; the one sound or habit in each says which animal it is."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(sorted(SIGNS))
        words = draw.choices(WORDS, k=draw.randint(1, longest))
        words.insert(draw.randint(0, len(words)), draw.choice(SIGNS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_file(directory: Path, **changes) -> Path:
    """A config of a short run on animals, in `directory`, with dotted changes (a__b=…)."""
    if not (directory / "train.jsonl").exists():
        for name, count, seed in (("train", 90, 1), ("dev", 30, 2), ("test", 30, 3)):
            write_jsonl(directory / f"{name}.jsonl", animal_texts(count, seed))
    if not (directory / "base").exists():
        checkpoint(directory / "base")
    values = {
        "run": {"dir": str(directory / "run"), "device": "cpu"},
        "model": str(directory / "base"),
        "task": {"max_length": 32},
        "data": {name: str(directory / f"{name}.jsonl") for name in ("train", "dev", "test")},
        "batch": {"global_batch_size": 16},
        "epochs": 2,
        "optim": {"lr": 1e-3},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    for dotted, value in changes.items():
        at = values
        *parents, last = dotted.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        if value is None:
            at.pop(last, None)
        else:
            at[last] = value
    path = directory / f"config-{abs(hash(repr(values)))}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def finetune(path: Path, *overrides: str) -> int:
    return main([str(path), *overrides])


def records(run: Path, key: str | None = None) -> list:
    rows = [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    return rows if key is None else [row[key] for row in rows if key in row]


def read_report(run: Path) -> dict:
    return orjson.loads((run / "report.json").read_bytes())
