"""The keys of a data preparation run that say how text becomes tokens, and their mistakes."""

import re
from pathlib import Path
from typing import Any, Literal

import pydantic

from runtime.config import Config, Problem, key, section

EOD, UNKNOWN = "<|endoftext|>", "<unk>"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)  # the first of them that a folder holds
_SPECIAL_FORM = re.compile(r"<[^\s<>]*\w[^\s<>]*>|\[[^\s\[\]]*\w[^\s\[\]]*\]")


class TrainTokenizer(Config):
    """How to train a tokenizer on the input."""

    kind: Literal["bpe", "wordpiece", "unigram", "char"] = key(
        "bpe", "byte-level BPE, BERT's WordPiece, sentencepiece's Unigram, or single characters"
    )
    engine: Literal["auto", "tokenizers", "sentencepiece"] = key(
        "auto", "what trains; auto: sentencepiece for unigram (it trains bpe too), else tokenizers"
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
        has_unknown = self.kind == "char" or self.is_sentencepiece
        own = BERT_SPECIALS if is_bert else (EOD, UNKNOWN) if has_unknown else (EOD,)
        return (*own, *self.extra_tokens)

    @pydantic.model_serializer(mode="wrap")
    def _without_implied(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans are compared by this: those made before there was an engine have none."""
        content: dict[str, Any] = dump(self)
        if self.kind == "unigram" or self.engine != "sentencepiece":
            content.pop("engine", None)
        return content

    @property
    def is_sentencepiece(self) -> bool:
        """Whether sentencepiece trains it."""
        return self.engine == "sentencepiece" or self.kind == "unigram"

    @property
    def is_bert(self) -> bool:
        """Whether the special tokens are BERT's."""
        return self.specials[0] == BERT_SPECIALS[0]


class TokenizerChoice(Config):
    """A tokenizer to train, or one that exists."""

    train: TrainTokenizer = section(TrainTokenizer, "how to train one")
    path: str | None = key(
        None,
        "a tokenizer.json, a sentencepiece .model, a WordPiece vocab.txt, or a folder that holds "
        "one; instead of train",
    )
    lowercase: bool | None = key(
        None, "vocab.txt only: fold case and strip accents; none goes by the files themselves"
    )
    eod: str | None = key(
        None, "token that ends a document; none takes the tokenizer's own end-of-text token"
    )
    backend: Literal["auto", "gigatoken", "tokenizers"] = key(
        "auto",
        "what encodes; auto: gigatoken where it gives the same ids. Never changes the output",
    )


def check_tokenizer(choice: TokenizerChoice) -> list[Problem]:
    """The mistakes that need several keys or the file system to see."""
    found: list[Problem] = []
    if choice.path is not None:
        if "train" in choice.model_fields_set:
            found.append(Problem("tokenizer", "has both path and train; keep one"))
        file = tokenizer_file(choice.path)
        if file is None:
            found.append(
                Problem(
                    "tokenizer.path",
                    f"{choice.path} is no tokenizer.json, .model or vocab.txt, and no folder "
                    "with one",
                )
            )
        elif choice.lowercase is not None and file.suffix != ".txt":
            found.append(Problem("tokenizer.lowercase", "goes with a vocab.txt alone"))
    elif choice.lowercase is not None:
        found.append(
            Problem("tokenizer.lowercase", "goes with tokenizer.path; write train.lowercase")
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
    if train.engine == "sentencepiece" and train.kind not in ("bpe", "unigram"):
        found.append(Problem("tokenizer.train.engine", f"sentencepiece trains no {train.kind}"))
    if train.engine == "tokenizers" and train.kind == "unigram":
        found.append(
            Problem(
                "tokenizer.train.engine",
                "tokenizers learns another Unigram vocabulary each time; write sentencepiece",
            )
        )
    has_bytes = train.kind in ("bpe", "unigram")
    least = len(train.specials) + (256 if has_bytes else 1)
    if train.vocab_size is not None and train.vocab_size < least:
        what = "256 bytes" if has_bytes else "text"
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


def tokenizer_file(text: str) -> Path | None:
    """The file that `tokenizer.path` names, or None: tokenizer.json, *.model or a vocabulary."""
    path = Path(text)
    if path.is_dir():
        inside = [path / name for name in _NAMES if (path / name).is_file()]
        return inside[0] if inside else None
    is_known = path.name == _NAMES[0] or path.suffix in (".model", ".txt")
    # A tokenizer_config.json lies beside it; a tokenizer.json is opened by that name.
    return path if path.is_file() and is_known else None
