"""Text ↔ token ids. Nothing written inside a document is ever taken for a special token."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers

from runtime.errors import EXIT_BAD_INPUT, UserError

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
PIECE_CHARACTERS = 1 << 20  # one call's memory grows with the longest text in it
GROUP_CHARACTERS = 4 << 20  # encoded at once
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class DocumentTokenizer:
    """A tokenizer as data preparation uses it: no padding, no truncation, no added tokens."""

    def __init__(self, directory: Path, eod: str | None = None) -> None:
        path = directory / FILE
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever is wrong
            raise UserError(f"{path}: not a usable tokenizer: {error}") from error
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
        self.unknown_id = _unknown_id(self._tokenizer)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text, without an end-of-document token."""
        pieces = [list(cut(text)) for text in texts]
        encoded = self._encode_pieces([piece for parts in pieces for piece in parts])
        found = []
        for parts in pieces:
            ids = [next(encoded) for _ in parts]
            found.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
        return found

    def _encode_pieces(self, pieces: list[str]) -> Iterator[npt.NDArray[np.int32]]:
        """Ids of each piece, a few MiB of text at a time: an Encoding is 30–80 times its text."""
        start = 0
        while start < len(pieces):
            end, size = start, 0
            while end < len(pieces) and (
                end == start or size + len(pieces[end]) <= GROUP_CHARACTERS
            ):
                size += len(pieces[end])
                end += 1
            group = pieces[start:end]
            for encoding in self._tokenizer.encode_batch_fast(group, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.int32)
            start = end

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of token ids, special tokens written out."""
        text: str = self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
        return text


def cut(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a long text into pieces of at most `limit` characters, between lines where possible.

    The best place is a single line break between two lines that have words: there the usual
    pre-tokenizers split anyway, so that the tokens stay those of the uncut text.
    """
    start = 0
    while len(text) - start > limit:
        end = _line_break(text, start, start + limit)
        yield text[start:end]
        start = end
    yield text[start:]


def _line_break(text: str, start: int, end: int) -> int:
    at = end
    while (at := text.rfind("\n", start + 1, at)) > 0:
        if not text[at - 1].isspace() and not text[at + 1].isspace():
            return at + 1
    at = text.rfind("\n", start, end)
    return at + 1 if at >= start else end


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
    try:
        config = orjson.loads((directory / CONFIG_FILE).read_bytes())
    except FileNotFoundError:
        config = {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{directory / CONFIG_FILE}: cannot be read: {error}") from error
    for role in ("eos_token", "sep_token"):
        token = config.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    for usual in _USUAL_ENDS:
        if tokenizer.token_to_id(usual) is not None:
            return usual
    raise UserError(
        f"{directory / FILE}: no end-of-text token found; set tokenizer.eod",
        status=EXIT_BAD_INPUT,
    )


def _unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what the vocabulary cannot say; None where it can say everything."""
    token = getattr(tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)
