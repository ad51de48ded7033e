"""A tokenizer that exists, in whichever form, as the tokenizer.json of a prepared directory.

tokenizer.json is copied; a sentencepiece model and a WordPiece vocab.txt become one that gives the
same ids.
"""

import re
from pathlib import Path
from typing import Any

import orjson
from tokenizers import processors

from data_prep.atomic import file_sha256, write_atomic
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer, default_config, read_config
from data_prep.tokenizer_config import BERT_SPECIALS, TokenizerChoice, tokenizer_file
from data_prep.tokenizer_train import bert_tokenizer
from runtime.errors import EXIT_BAD_INPUT, UserError

_ROLES = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT_SPECIALS, strict=True))
_UPPER = re.compile("[A-Z]")


def place(choice: TokenizerChoice, directory: Path) -> None:
    """Write the chosen tokenizer's tokenizer.json and tokenizer_config.json into a directory.

    Raises UserError for files that are no tokenizer, or that would encode otherwise so.
    """
    path = _file(choice)
    beside = path.with_name(CONFIG_FILE)
    if path.name == FILE:
        tokenizer = DocumentTokenizer(path.parent, choice.eod)
        content = path.read_bytes()
        config = beside.read_bytes() if beside.exists() else _dumped(default_config(tokenizer.eod))
    else:
        if path.suffix == ".txt":
            content, own = _word_pieces(path, is_lowercase(choice))
        else:
            from data_prep.tokenizer_sentencepiece import convert

            content, own = convert(path.read_bytes(), path)
        if choice.eod is not None:
            own["eos_token"] = choice.eod
        config = _dumped(own)
    write_atomic(directory / CONFIG_FILE, config)
    write_atomic(directory / FILE, content)
    if path.name != FILE:
        DocumentTokenizer(directory, choice.eod)  # raises where no token ends a document


def identity(choice: TokenizerChoice) -> dict[str, Any]:
    """What of a given tokenizer decides the token ids, as JSON."""
    path = _file(choice)
    beside = path.with_name(CONFIG_FILE)  # says which token begins, ends and masks
    found: dict[str, Any] = {
        "sha256": file_sha256(path),
        "config_sha256": file_sha256(beside) if beside.exists() else None,
        "eod": choice.eod,
    }
    if path.suffix == ".txt":
        found["lowercase"] = is_lowercase(choice)
    return found


def is_lowercase(choice: TokenizerChoice) -> bool:
    """Whether a vocab.txt is for folded text.

    As `tokenizer.lowercase` says, else tokenizer_config.json beside it, else the vocabulary: one
    without any capital letter outside its special tokens.
    """
    if choice.lowercase is not None:
        return choice.lowercase
    path = _file(choice)
    said = read_config(path.parent).get("do_lower_case")
    if isinstance(said, bool):
        return said
    entries = _entries(path)
    return not any(_UPPER.search(entry) for entry in entries if not entry.startswith("["))


def _file(choice: TokenizerChoice) -> Path:
    path = tokenizer_file(choice.path or "")
    assert path is not None, "config.check refuses a missing tokenizer"
    return path


def _entries(path: Path) -> list[str]:
    """The lines of a vocab.txt; a line's number, from 0, is its token's id."""
    try:
        entries = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    entries = [entry.removesuffix("\r") for entry in entries]
    lines: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        if lines.setdefault(entry, number) != number:
            raise UserError(
                f"{path}: lines {lines[entry]} and {number} are both {entry!r}; a vocabulary "
                "has every token once",
                status=EXIT_BAD_INPUT,
            )
    if _ROLES["unk"] not in lines:
        raise UserError(
            f"{path}: has no line {_ROLES['unk']}; a WordPiece vocabulary needs one",
            status=EXIT_BAD_INPUT,
        )
    return entries


def _word_pieces(path: Path, lowercase: bool) -> tuple[bytes, dict[str, Any]]:
    """BERT's tokenizer of a vocab.txt, and its settings."""
    vocabulary = {entry: number for number, entry in enumerate(_entries(path))}
    tokenizer = bert_tokenizer(vocabulary, lowercase)
    roles = {role: token for role, token in _ROLES.items() if token in vocabulary}
    tokenizer.add_special_tokens(list(roles.values()))
    if {"cls", "sep"} <= set(roles):
        ends = [(roles[role], vocabulary[roles[role]]) for role in ("sep", "cls")]
        tokenizer.post_processor = processors.BertProcessing(*ends)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in roles.items()},
        "do_lower_case": lowercase,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    return tokenizer.to_str(pretty=True).encode("utf-8"), config


def _dumped(config: dict[str, Any]) -> bytes:
    data: bytes = orjson.dumps(config, option=orjson.OPT_INDENT_2) + b"\n"
    return data
