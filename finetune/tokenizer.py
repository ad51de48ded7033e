"""The checkpoint's tokenizer as a classifier uses it: truncating, padding, one text per row."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers

from model.config import ModelConfig
from runtime.errors import EXIT_BAD_INPUT, UserError

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
_PART = 1000  # texts
_USUAL = {"mask_token": "[MASK]"}  # where tokenizer_config.json is silent


class Pairs(NamedTuple):
    """Pairs of texts as token ids."""

    rows: list[npt.NDArray[np.int32]]
    segments: list[npt.NDArray[np.int8]] | None  # 1 in the second text; None: the model has none
    is_cut: list[bool]  # whether the pair was cut at the maximum length


class EncodedWords(NamedTuple):
    """A sentence that was given word by word."""

    ids: npt.NDArray[np.int32]  # (tokens,)
    firsts: npt.NDArray[np.int64]  # (words,): each one's first token; -1 where it has none
    is_truncated: bool


class Window(NamedTuple):
    """A question and a part of the text that it is about."""

    ids: npt.NDArray[np.int32]  # (tokens,)
    segments: npt.NDArray[np.int8] | None  # (tokens,), 1 in the text; None: the model has none
    offsets: npt.NDArray[np.int32]  # (tokens, 2): characters of the text; -1 outside it


class TextTokenizer:
    """Text → token ids, never longer than `max_length`, never ending in the padding token.

    Hugging Face's classifiers read the last token that is not `pad_token_id`, by its id. Where
    padding is the end-of-text token (GPT-2, and what data_prep makes) an end-of-text token
    appended to a text would be skipped with the padding. So it is not appended: padding ids
    at the end of an encoding are cut off, and what is written in a text is never read as a special
    token. Both libraries then read the same token, with and without padding.
    """

    def __init__(self, directory: Path, config: ModelConfig, max_length: int | None = None) -> None:
        self.directory = directory
        path = directory / FILE
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever is wrong
            reason = "no such file" if not path.is_file() else f"not a usable tokenizer: {error}"
            raise UserError(f"{path}: {reason}", status=EXIT_BAD_INPUT) from error
        self._settings = _read_settings(directory)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.mask_id = self.id_of("mask_token")
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.pad_id = self._find_pad(config)
        self.shape = config
        self._has_segments = config.type_vocab_size > 1
        self.max_length = max_length or min(
            config.max_seq_len, int(self._settings.get("model_max_length", config.max_seq_len))
        )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length)
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], int]:
        """Token ids of each text, and how many texts were cut at `max_length`."""
        found, truncated = [], 0
        for encoding in self._tokenizer.encode_batch(list(texts)):
            ids = np.array(encoding.ids, dtype=np.int32)
            last = np.flatnonzero(ids != self.pad_id)
            # A text of which the tokenizer keeps nothing is one padding token: never an empty row.
            found.append(ids[: last[-1] + 1] if len(last) else np.array([self.pad_id], np.int32))
            truncated += bool(encoding.overflowing)
        return found, truncated

    def encode_all(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], int]:
        """As `encode`, for many texts; the library's own records are kept of a part at a time."""
        rows: list[npt.NDArray[np.int32]] = []
        truncated = 0
        for start in range(0, len(texts), _PART):
            found, cut = self.encode(texts[start : start + _PART])
            rows += found
            truncated += cut
        return rows, truncated

    def pieces(self, text: str) -> list[int]:
        """Return the ids of a part of a text, without special tokens; `max_length` at most."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def id_of(self, role: str) -> int | None:
        """The id of the token with this role (mask_token, unk_token, …); None without one."""
        named = next(self._named(role), None)
        if named is None and role in _USUAL:
            named = self._tokenizer.token_to_id(_USUAL[role])
        if named is None and role == "unk_token":
            named = self._tokenizer.token_to_id(getattr(self._tokenizer.model, role, None) or "")
        return named

    def encode_words(self, sentences: Iterable[Sequence[str]]) -> Iterator[EncodedWords]:
        """Token ids of sentences given as words: no token reaches over the end of a word.

        A word begins with a space where the text has one before it.
        """
        rest = iter(sentences)
        while part := list(itertools.islice(rest, _PART)):
            encodings = self._tokenizer.encode_batch([list(s) for s in part], is_pretokenized=True)
            for sentence, encoding in zip(part, encodings, strict=True):
                firsts = np.full(len(sentence), -1, dtype=np.int64)
                for token, word in reversed(list(enumerate(encoding.word_ids))):
                    if word is not None:
                        firsts[word] = token
                # A text of which the tokenizer keeps nothing is one padding token.
                ids = np.array(encoding.ids or [self.pad_id], dtype=np.int32)
                yield EncodedWords(ids, firsts, bool(encoding.overflowing))

    def encode_windows(
        self, pairs: Iterable[tuple[str, str]], stride: int
    ) -> Iterator[tuple[list[Window], bool]]:
        """Token ids of questions with texts, in windows that share `stride` tokens of the text.

        Yields the windows of each pair, at least one, and whether its question was cut: it may take
        a quarter of `max_length`.
        """
        rest = iter(pairs)
        while part := list(itertools.islice(rest, _PART)):
            self._tokenizer.no_truncation()
            questions = [question for question, _ in part]
            alone = self._tokenizer.encode_batch(questions, add_special_tokens=False)
            limit = self.max_length // 4
            ends = [a.offsets[limit - 1][1] if len(a.ids) > limit else None for a in alone]
            self._tokenizer.enable_truncation(
                self.max_length, stride=stride, strategy="only_second"
            )
            try:
                encodings = self._tokenizer.encode_batch(
                    [(q[:end], text) for (q, text), end in zip(part, ends, strict=True)]
                )
            finally:
                self._tokenizer.enable_truncation(self.max_length)
            for encoding, end in zip(encodings, ends, strict=True):
                windows = [encoding, *encoding.overflowing]
                yield [self._window(window) for window in windows], end is not None

    def _window(self, encoding: Any) -> Window:
        if not encoding.ids:  # the tokenizer keeps nothing: one padding token
            zeros = np.zeros(1, np.int8) if self._has_segments else None
            return Window(np.array([self.pad_id], np.int32), zeros, np.full((1, 2), -1, np.int32))
        offsets = np.array(encoding.offsets, dtype=np.int32)
        sides = encoding.sequence_ids
        # Without a template the library leaves the sides out of every window but the first.
        offsets[[one != 1 for one in (sides if 1 in sides else encoding.type_ids)]] = -1
        segments = np.array(encoding.type_ids, dtype=np.int8) if self._has_segments else None
        return Window(np.array(encoding.ids, dtype=np.int32), segments, offsets)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Pairs:
        """Token ids of each pair, joined as the tokenizer joins them; the longer text is cut."""
        rows, segments, is_cut = [], [], []
        for start in range(0, len(pairs), _PART):
            for encoding in self._tokenizer.encode_batch(list(pairs[start : start + _PART])):
                ids = np.array(encoding.ids, dtype=np.int32)
                last = np.flatnonzero(ids != self.pad_id)
                length = last[-1] + 1 if len(last) else 1  # as in `encode`
                rows.append(ids[:length] if len(ids) else np.array([self.pad_id], np.int32))
                types = np.array(encoding.type_ids[:length] or [0], dtype=np.int8)
                segments.append(types)
                is_cut.append(bool(encoding.overflowing))
        return Pairs(rows, segments if self._has_segments else None, is_cut)

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end a text: the model's, then the tokenizer's own."""
        found = [*self.shape.eos_token_ids, *self._named("eos_token")]
        return [i for i in dict.fromkeys(found) if i in self.special_ids]

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens that `encode` puts before a text, and after it."""
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        ids = self._tokenizer.encode("a").ids
        at = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
        return ids[:at], ids[at + len(plain) :]

    @property
    def start(self) -> str | None:
        """The begin-of-text token, where `encode` puts one before a text."""
        before, _ = self.around
        begins = before and before[0] in (self.shape.bos_token_id, *self._named("bos_token"))
        return self.token(before[0]) if begins else None

    def token(self, token_id: int) -> str | None:
        """The text of a token."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    def special_id(self, token: str) -> int | None:
        """The id of a special token; None where this is none."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id if token_id in self.special_ids else None

    def setting(self, name: str) -> Any:
        """A key of tokenizer_config.json; None where it is not there."""
        return self._settings.get(name)

    def encode_part(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a part of a text, without special ones, however many; where each one ends.

        The ends are in characters.
        """
        self._tokenizer.no_truncation()
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        self._tokenizer.enable_truncation(self.max_length)
        return encoding.ids, [end for _, end in encoding.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def write_settings(self, directory: Path, extra: Mapping[str, Any] | None = None) -> None:
        """Let `AutoTokenizer` in a saved directory do exactly what `encode` does.

        extra: settings of a task that go before these.
        """
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._settings,
            "pad_token": self._tokenizer.id_to_token(self.pad_id),
            "model_max_length": self.max_length,
            "padding_side": "right",
            "truncation_side": "right",
            "split_special_tokens": True,
            **(extra or {}),
        }
        if extra and "chat_template" in extra:
            # Copied from the checkpoint, and read before the settings.
            (directory / "chat_template.jinja").unlink(missing_ok=True)
        (directory / SETTINGS).write_bytes(orjson.dumps(settings, option=orjson.OPT_INDENT_2))

    def _find_pad(self, config: ModelConfig) -> int:
        """The padding id: the tokenizer's, else the model's, else the end-of-text token's."""
        for token_id in self._pad_candidates(config):
            # An ordinary token would be skipped at the end of a text, as if it were padding.
            if token_id in self.special_ids and token_id < config.vocab_size:
                return token_id
        raise UserError(
            f"{self.directory}: neither its tokenizer nor its config.json names a padding or an "
            "end-of-text token that is special in tokenizer.json; set pad_token in "
            f"{SETTINGS} to such a token",
            status=EXIT_BAD_INPUT,
        )

    def _pad_candidates(self, config: ModelConfig) -> Iterator[int]:
        padding = self._tokenizer.padding
        if padding is not None:
            yield padding["pad_id"]
        yield from self._named("pad_token")
        if config.pad_token_id is not None:
            yield config.pad_token_id
        yield from config.eos_token_ids
        yield from self._named("eos_token")

    def _named(self, role: str) -> Iterator[int]:
        token = self._settings.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        token_id = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        if token_id is not None:
            yield token_id


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / SETTINGS
    try:
        settings = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", status=EXIT_BAD_INPUT) from error
    return settings if isinstance(settings, dict) else {}
