"""The config of a data preparation run, and the mistakes that concern several keys at once."""

import glob
import re
from pathlib import Path
from typing import Any, Literal

import pydantic

from runtime.config import Config, Problem, key, section

BUILTIN = "builtin:python"  # stands for the text that every Python installation carries
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
Format = Literal["text", "jsonl"]
EOD, UNKNOWN = "<|endoftext|>", "<unk>"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


_SPECIAL_FORM = re.compile(r"<[^\s<>]*\w[^\s<>]*>|\[[^\s\[\]]*\w[^\s\[\]]*\]")


class Input(Config):
    """Where documents come from, and what one document is."""

    paths: tuple[str, ...] = key(
        ..., f"files, folders (read recursively) and globs; or {BUILTIN}", min_length=1
    )
    format: Literal["auto", "text", "jsonl"] = key(
        "auto", "auto goes by the file's name; .gz is unpacked in every format"
    )
    text_key: str = key("text", "field of a JSON object that holds the document", min_length=1)
    document: Literal["file", "paragraph", "line"] = key(
        "file", "what one document is in a text file; paragraphs are separated by blank lines"
    )

    sentences: bool = key(
        False, "also store where sentences end, for next-sentence and sentence-order prediction"
    )

    @pydantic.field_validator("paths", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class TrainTokenizer(Config):
    """How to train a tokenizer on the input."""

    kind: Literal["bpe", "wordpiece", "char"] = key(
        "bpe", "byte-level BPE (knows every character), BERT's WordPiece, or single characters"
    )
    vocab_size: int | None = key(
        None, "entries; none is 32768, or for char every character seen", unit="tokens", ge=8
    )
    min_frequency: int = key(2, "a merged piece must occur at least this often", ge=1)
    special_tokens: Literal["auto", "gpt", "bert"] = key(
        "auto",
        f"gpt: {EOD}; bert: {' '.join(BERT_SPECIALS)}; auto: bert for wordpiece, gpt for the rest",
    )
    extra_tokens: tuple[str, ...] = key(
        (), "further special tokens, such as <|fim_prefix|>; written in a text they stay text"
    )
    lowercase: bool = key(False, "WordPiece only: fold case and strip accents, as in BERT uncased")
    sample_bytes: int = key(
        16 << 20, "bpe and wordpiece learn from about this much text", unit="bytes", ge=1
    )

    @property
    def specials(self) -> tuple[str, ...]:
        """Every special token, in the order of the ids, from 0."""
        is_bert = self.special_tokens == "bert" or self.kind == "wordpiece"
        own = BERT_SPECIALS if is_bert else (EOD, UNKNOWN) if self.kind == "char" else (EOD,)
        return (*own, *self.extra_tokens)

    @property
    def is_bert(self) -> bool:
        """Whether the special tokens are BERT's."""
        return self.specials[0] == BERT_SPECIALS[0]


class TokenizerChoice(Config):
    """A tokenizer to train, or one that exists."""

    train: TrainTokenizer = section(TrainTokenizer, "how to train one")
    path: str | None = key(None, "a tokenizer.json, or a folder that holds one; instead of train")
    eod: str | None = key(
        None, "token that ends a document; none takes the tokenizer's own end-of-text token"
    )


class Split(Config):
    """Which documents are kept for validation."""

    valid: float = key(0.0, "fraction kept for validation", ge=0, lt=1)
    by: Literal["hash", "tail"] = key(
        "hash",
        "hash: each document's own hash decides; tail: the last fraction of every file",
    )


class DataPrepConfig(Config):
    """One data preparation run: raw text in, one directory of shards out."""

    input: Input
    output: str = key(..., "directory to write", min_length=1)
    tokenizer: TokenizerChoice = section(TokenizerChoice, "how text becomes tokens")
    split: Split = section(Split, "training and validation")
    workers: int = key(0, "processes; 0 is one for each CPU core. Never changes the output", ge=0)
    max_bad_fraction: float = key(
        0.01, "the run fails when more than this fraction of records is unreadable", ge=0, le=1
    )
    work_unit_bytes: int = key(
        32 << 20, "input that one shard is made from", unit="bytes", ge=1 << 10
    )


def check(config: DataPrepConfig) -> list[Problem]:
    """The problems that need several keys or the file system to see."""
    problems = [*_check_inputs(config), *_check_tokenizer(config.tokenizer)]
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        problems.append(Problem("output", f"{output} is a file; name a directory"))
    return problems


def _check_inputs(config: DataPrepConfig) -> list[Problem]:
    found: list[Problem] = []
    output = Path(config.output).resolve()
    for text in config.input.paths:
        if text == BUILTIN:
            continue
        files = expand(text, config.input.format)
        if not files:
            found.append(Problem("input.paths", _why_nothing(text, config.input.format)))
        if Path(text).is_dir() and output.is_relative_to(Path(text).resolve()):
            found.append(
                Problem("output", f"{output} lies inside the input {text}; write elsewhere")
            )
        elif any(file.resolve().is_relative_to(output) for file in files):
            found.append(
                Problem("input.paths", f"{text} reads from the output directory; move one of them")
            )
        unclear = [f for f in files if format_of(f, config.input.format) is None]
        if unclear:
            found.append(
                Problem(
                    "input.format",
                    f"the name of {unclear[0]} does not tell its format; write text or jsonl",
                )
            )
    return found


def _check_tokenizer(choice: TokenizerChoice) -> list[Problem]:
    found: list[Problem] = []
    if choice.path is not None:
        if "train" in choice.model_fields_set:
            found.append(Problem("tokenizer", "has both path and train; keep one"))
        if tokenizer_file(choice.path) is None:
            found.append(
                Problem(
                    "tokenizer.path",
                    f"{choice.path} is neither a tokenizer.json nor a folder with one",
                )
            )
    elif choice.eod is not None:
        found.append(
            Problem("tokenizer.eod", "goes with tokenizer.path; a trained tokenizer has its own")
        )
    return [*found, *_check_training(choice.train)]


def _check_training(train: TrainTokenizer) -> list[Problem]:
    found: list[Problem] = []
    if train.lowercase and train.kind != "wordpiece":
        found.append(Problem("tokenizer.train.lowercase", f"{train.kind} keeps text exactly"))
    if train.kind == "wordpiece" and train.special_tokens == "gpt":
        found.append(
            Problem("tokenizer.train.special_tokens", "wordpiece has BERT's; write auto or bert")
        )
    least = len(train.specials) + {"bpe": 256, "char": 1, "wordpiece": 1}[train.kind]
    if train.vocab_size is not None and train.vocab_size < least:
        what = "256 bytes" if train.kind == "bpe" else "text"
        found.append(
            Problem(
                "tokenizer.train.vocab_size",
                f"expected {least} or more ({what} and the special tokens "
                f"{' '.join(train.specials)}); got {train.vocab_size}",
            )
        )
    for number, token in enumerate(train.extra_tokens):
        why = None
        if not _SPECIAL_FORM.fullmatch(token):
            # Only such a form is several words of a text, and so never learnt as one token.
            why = "expected <…> or […] around a name without spaces, such as <|fim_prefix|>"
        elif train.specials.index(token) != len(train.specials) - len(train.extra_tokens) + number:
            why = "is there already"
        if why:
            found.append(Problem(f"tokenizer.train.extra_tokens[{number}]", f"{token!r}: {why}"))
    return found


def expand(text: str, wanted: str) -> list[Path]:
    """The files that one entry of `input.paths` stands for, sorted."""
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _inside(path, wanted)
    # pathlib's own glob refuses absolute patterns
    found: set[Path] = set()
    for match in map(Path, glob.glob(text, recursive=True)):  # noqa: PTH207
        found.update([match] if match.is_file() else _inside(match, wanted))
    return sorted(found)


def _inside(folder: Path, wanted: str) -> list[Path]:
    """The files of a folder and of all below it, also behind links; hidden ones are left out."""
    names = sorted(glob.glob("**/*", root_dir=folder, recursive=True))  # noqa: PTH207
    files = [folder / name for name in names if (folder / name).is_file()]
    once = {path.resolve(): path for path in reversed(files)}  # a link may lead to a loop
    return sorted(path for path in once.values() if format_of(path, wanted) is not None)


def _why_nothing(text: str, wanted: str) -> str:
    path = Path(text)
    if path.is_dir():
        names = " ".join(TEXT_SUFFIXES + JSONL_SUFFIXES)
        what = "files" if wanted != "auto" else f"files named *{{{names}}}[.gz]"
        return f"the folder {text} holds no {what}"
    if glob.has_magic(text):
        return f"{text} matches no file"
    return f"{text} does not exist"


def format_of(path: Path, wanted: str) -> Format | None:
    """The format to read a file in: the one asked for, else by its name, else None."""
    if wanted == "text":
        return "text"
    if wanted == "jsonl":
        return "jsonl"
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(JSONL_SUFFIXES):
        return "jsonl"
    return "text" if name.endswith(TEXT_SUFFIXES) else None


def tokenizer_file(text: str) -> Path | None:
    """The tokenizer.json that `tokenizer.path` names, or None."""
    path = Path(text)
    path = path / "tokenizer.json" if path.is_dir() else path
    # Its tokenizer_config.json lies beside it, and both are opened by these names.
    return path if path.is_file() and path.name == "tokenizer.json" else None
