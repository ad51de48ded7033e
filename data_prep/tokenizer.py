"""Text ↔ token ids. Nothing written inside a document is ever taken for a special token."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers

from data_prep import words
from data_prep.pieces import cut as cut
from data_prep.tokenizer_batches import BatchEncoder, Encoded, encode_plainly
from data_prep.tokenizer_losses import unknown_id
from runtime.errors import EXIT_BAD_INPUT, UserError

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_SPACE_MARK = "▁"  # SentencePiece's
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
# Byte-level tokenizers write a byte as the character of its number where that is visible, else
# as the next free one from 256 on (Radford et al. 2019).
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + number): byte for number, byte in enumerate(sorted({*range(256)} - {*_VISIBLE}))
}
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class DocumentTokenizer:
    """A tokenizer as data preparation uses it: no padding, no truncation, no added tokens.

    backend: "auto" encodes batches with gigatoken where that gives the ids of `tokenizers`;
    "gigatoken" raises UserError where it does not; "tokenizers" never tries.
    """

    def __init__(self, directory: Path, eod: str | None = None, backend: str = "auto") -> None:
        path = directory / FILE
        self._tokenizer = _open(directory)
        # A file may carry these from the run that made it; each of them would lose text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|endoftext|>" written inside a document is text, not the end of the document.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.eod = eod or _find_end(directory, self._tokenizer)
        end_id = self._tokenizer.token_to_id(self.eod)
        if end_id is None:
            raise UserError(f"{path}: has no token {self.eod!r}; set tokenizer.eod to one it has")
        self.eod_id: int = end_id
        self.unknown_id = unknown_id(self._tokenizer)
        self._backend = backend

    @cached_property
    def _batches(self) -> BatchEncoder:
        made = BatchEncoder(self._tokenizer, self.eod_id, self.unknown_id, self._backend)
        if self._backend == "gigatoken" and made.backend != "gigatoken":
            raise UserError(
                f"tokenizer.backend=gigatoken: {made.reason}; write auto", status=EXIT_BAD_INPUT
            )
        return made

    @property
    def backend(self) -> str:
        """What encodes batches: gigatoken or tokenizers."""
        return self._batches.backend

    @property
    def backend_reason(self) -> str:
        """Why it is not gigatoken; empty where it is."""
        return self._batches.reason

    def begin_unit(self, unit: int, is_fast: bool = True) -> None:
        """Start the documents of a unit of work, the sample of which depends on the unit alone.

        is_fast=False: after EncodersDifferError, to encode the whole unit with `tokenizers`.
        """
        self._batches.begin_unit(unit, is_fast)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Token ids of many documents, with end-of-document tokens.

        Raises EncodersDifferError where the fast encoder was found to err.
        """
        return self._batches.encode(texts)

    def encode_sentence_batch(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """The same made sentence by sentence, and where the sentences end."""
        return self._batches.encode_sentences(documents)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text, without an end-of-document token."""
        pieces = [list(cut(text)) for text in texts]
        encoded = iter(
            encode_plainly(self._tokenizer, [piece for parts in pieces for piece in parts])
        )
        found = []
        for parts in pieces:
            ids = [next(encoded) for _ in parts]
            found.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
        return found

    def encode_sentences(
        self, texts: Sequence[Sequence[str]]
    ) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
        """Token ids of each text, made sentence by sentence, and where its sentences end.

        The ends are exclusive; a sentence that gives no token has none.
        """
        encoded = iter(self.encode([sentence for text in texts for sentence in text]))
        found = []
        for text in texts:
            parts = [next(encoded) for _ in text]
            ends = np.cumsum([len(part) for part in parts if len(part)], dtype=np.int64)
            found.append((np.concatenate(parts), ends))
        return found

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of token ids, special tokens written out."""
        text: str = self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
        return text


class SpecialTokens:
    """What an objective must know of a tokenizer: its special tokens, and what makes a word.

    Read from a folder with tokenizer.json and tokenizer_config.json, as each prepared directory
    is. `roles` has the id of each role ("cls", "sep", …), None where the config names no such
    token; `cls_id`, `sep_id`, `mask_id` and `pad_id` are some of them. `special_ids` are all of
    them, and all that tokenizer.json marks as special. Raises UserError for files that cannot be
    used.
    """

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self._tokenizer = _open(directory)
        config = read_config(directory)
        roles = ("cls", "sep", "mask", "pad", "bos", "eos", "unk")
        ids = {role: self.id_of(_role(config, f"{role}_token") or "") for role in roles}
        self.roles: dict[str, int | None] = ids
        self.cls_id, self.sep_id = ids["cls"], ids["sep"]
        self.mask_id, self.pad_id = ids["mask"], ids["pad"]
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(
            [number for number, token in added.items() if token.special]
            + [number for number in ids.values() if number is not None]
        )
        self._vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(self._vocabulary.values())
        self._spelling = _Spelling(orjson.loads((directory / FILE).read_bytes()))

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """Every id that stands for a token, rising; a vocabulary may have gaps. (n,)"""
        return np.array(sorted(self._vocabulary.values()), dtype=np.int64)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, such as <|fim_prefix|>; None where there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encoded(self, text: str) -> list[int]:
        """A text's token ids, without those that the tokenizer would put around it."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def utf8(self, ids: npt.ArrayLike) -> list[bytes]:
        """What each token writes, without WordPiece's "##"; byte-level, it may cut characters."""
        numbers = np.asarray(ids).tolist()
        names = [self._tokenizer.id_to_token(number) or "" for number in numbers]
        return [
            name.encode("utf-8") if number in self.special_ids else self._spelling.written(name)
            for number, name in zip(numbers, names, strict=True)
        ]

    @cached_property
    def continuations(self) -> npt.NDArray[np.bool_]:
        """Which tokens continue a word. (vocab_size,)

        WordPiece: those with its "##". Elsewhere those that begin, without a space, with a letter,
        a digit or the like (`words.continues_word`): punctuation, and characters of scripts
        without spaces, such as Chinese, begin a word of their own. A word's first token is among
        them where no space precedes it, as after "(": `word_starts` knows these apart.
        """
        return self._flags(self._spelling.continues)

    def word_starts(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Where words begin in rows of tokens. (…, n) → (…, n)

        A token that continues a word does so only after one that ends in a letter or the like.
        """
        row = np.asarray(ids)
        joins = np.zeros(row.shape, dtype=bool)
        joins[..., 1:] = self._joined[row[..., :-1]]
        starts: npt.NDArray[np.bool_] = ~(self.continuations[row] & (joins | self._glued[row]))
        return starts

    @cached_property
    def _joined(self) -> npt.NDArray[np.bool_]:
        return self._flags(self._spelling.can_be_continued)

    @cached_property
    def _glued(self) -> npt.NDArray[np.bool_]:
        return self._flags(self._spelling.always_continues)

    def _flags(self, judge: Callable[[str], bool]) -> npt.NDArray[np.bool_]:
        flags = np.zeros(self.vocab_size, dtype=bool)
        for token, number in self._vocabulary.items():
            flags[number] = number not in self.special_ids and judge(token)
        return flags


class _Spelling:
    """How a tokenizer.json writes the text of its tokens."""

    def __init__(self, content: dict[str, Any]) -> None:
        model = content["model"]
        self._prefix: str | None = None
        if model["type"] == "WordPiece":
            self._prefix = model["continuing_subword_prefix"]
        parts = orjson.dumps([content.get("pre_tokenizer"), content.get("decoder")])
        self._is_byte_level = b'"ByteLevel"' in parts
        self._has_space_marks = not self._is_byte_level and _SPACE_MARK.encode() in parts

    def data(self, token: str) -> bytes:
        """The UTF-8 that a token stands for."""
        if self._is_byte_level:
            # Added tokens are written plainly.
            known = all(character in _BYTE_OF for character in token)
            return bytes(_BYTE_OF[c] for c in token) if known else token.encode("utf-8")
        if self._has_space_marks:
            if _BYTE_TOKEN.fullmatch(token):
                return bytes([int(token[3:5], 16)])
            token = token.replace(_SPACE_MARK, " ")
        return token.encode("utf-8")

    def written(self, token: str) -> bytes:
        """The same, without what says that a token continues a word."""
        return self.data(token.removeprefix(self._prefix or ""))

    def continues(self, token: str) -> bool:
        if self._prefix:
            return token.startswith(self._prefix)
        return words.continues_word(self.data(token))

    def always_continues(self, token: str) -> bool:
        """Whatever is before it."""
        if self._prefix:
            return token.startswith(self._prefix)
        return words.is_inside_character(self.data(token))

    def can_be_continued(self, token: str) -> bool:
        return words.ends_in_word(self.data(token))


def default_config(eod: str) -> dict[str, Any]:
    """The tokenizer_config.json that lets `AutoTokenizer` open a text-generation tokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eod,
        "eos_token": eod,
        "pad_token": eod,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }


def _find_end(directory: Path, tokenizer: Any) -> str:
    """The token that ends a document: the configured eos or sep, else a usual name."""
    config = read_config(directory)
    for role in ("eos_token", "sep_token"):
        token = _role(config, role)
        if token is not None:
            return token
    for usual in _USUAL_ENDS:
        if tokenizer.token_to_id(usual) is not None:
            return usual
    raise UserError(
        f"{directory / FILE}: no end-of-text token found; set tokenizer.eod",
        status=EXIT_BAD_INPUT,
    )


def _open(directory: Path) -> Any:
    path = directory / FILE
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        raise UserError(f"{path}: not a usable tokenizer: {error}") from error


def read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where there is none."""
    path = directory / CONFIG_FILE
    try:
        config = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(config).__name__}; mend it")
    return config


def _role(config: dict[str, Any], role: str) -> str | None:
    token = config.get(role)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
