"""The fast encoder, gigatoken, where it gives the ids that `tokenizers` gives.

It takes a special token that is written in a document for the token itself, and a few settings of
`tokenizers` it does not know. Whatever could differ is encoded by `tokenizers` instead: a whole
tokenizer (with the reason), or one text. Its readers of files are not used: they end a file at the
first record that they cannot read.
"""

import os
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

Ids = npt.NDArray[np.int32]
_MOST_ADDED = 64  # added tokens that are probed; released tokenizers have up to some thousands
_CHECK_BYTES = 16 << 20  # text between two looks at the memory
_CACHE_BYTES = 256 << 20  # its cache of words has no bound of its own
_UNMEASURED_BYTES = 128 << 20  # of text, where the memory cannot be read
PROBES = (
    "",
    " ",
    "\n\n\n",
    " \n \n  x",
    "\r\n\ttab  spaces   \r\n",
    "Don't they'll WE'RE I'm 'tis it''s o'clock's",
    "0 12 345 6789 12345678 3.14159 1,000,000 ½ ² ٣٤ Ⅷ",
    "def f(x): return x**2  # a_b->c::d <<= {'k': [1]}",
    "你好，世界！這是繁體。日本語のカタカナ한국어 텍스트",
    "naïve café ﬁ Ǆ İstanbul ß ẞ e\u0301 a\u0338 \u212a \u1e9b\u0323",
    "العربية עברית हिन्दी ไทย ქართული ελληνικά кириллица",
    "😀👩‍👩‍👧🏽 🇩🇪 \U0001f468\u200d\U0001f4bb ✂️",
    "\x00\x07\x1b\x7f\x85\xa0\xad\u2028\u2029\u200b\ufeff\ufffd\ufffe\U0010ffff\ue000",
    "-" * 200 + "=" * 64 + " " * 300 + "\t" * 40 + "\n" * 50,
    "a" * 3000,
    "word " * 600,
    "supercalifragilisticexpialidociousantidisestablishmentarianism" * 4,
    "https://example.org/a/b?c=d&e=%20#f user@example.org C:\\dir\\x ΩΣ",
)


class _Rules(NamedTuple):
    """What of a tokenizer's added tokens and normalisation the fast encoder may see differently."""

    suspicious: npt.NDArray[np.bool_]  # ids that only an added token written in a text can give
    needs_nfc: bool  # texts that normalisation changes are for `tokenizers`


class FastEncoder:
    """Encodes pieces of text as `tokenizers` does, many times as fast, on the calling thread.

    `plainly` encodes with `tokenizers`: pieces → ids of each. Made by `open_fast`.
    """

    def __init__(
        self, content: bytes, rules: _Rules, plainly: Callable[[list[str]], list[Ids]]
    ) -> None:
        self._content, self._rules, self._plainly = content, rules, plainly
        self._backend = _open(content)
        self._memory = _memory_bytes()
        self._since_check = 0

    def encode(self, pieces: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all pieces, one after the other, and how many each has. (n,), (pieces,)"""
        pieces = list(pieces)
        layout = self._backend.encode_batch(pieces, parallel=False).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        content = np.asarray(layout.content.data)
        ids = content[offsets[0] : offsets[-1]].view(np.int32)
        offsets = offsets - offsets[0]
        again = self._doubtful(ids, offsets, pieces)
        self._bound_memory(len(content))
        if not again:
            return ids, np.diff(offsets)
        parts = [ids[start:end] for start, end in pairwise(offsets)]
        for number, own in zip(again, self._plainly([pieces[n] for n in again]), strict=True):
            parts[number] = own
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return np.concatenate(parts), lengths

    def _doubtful(self, ids: Ids, offsets: npt.NDArray[np.int64], pieces: list[str]) -> list[int]:
        """The pieces that `tokenizers` may see otherwise.

        Wherever an added token was found its id stands in the result, so that texts need not be
        searched for them.
        """
        found = np.flatnonzero(self._rules.suspicious[ids])
        doubtful = set((np.searchsorted(offsets, found, side="right") - 1).tolist())
        if self._rules.needs_nfc:
            doubtful.update(
                number
                for number, piece in enumerate(pieces)
                if not unicodedata.is_normalized("NFC", piece)
            )
        return sorted(doubtful)

    def _bound_memory(self, tokens: int) -> None:
        """Start anew with an empty cache where it has grown large; the ids do not depend on it."""
        self._since_check += 4 * tokens  # about the bytes of text
        if self._since_check < _CHECK_BYTES:
            return
        now = _memory_bytes()
        if now is None or self._memory is None:
            is_large = self._since_check >= _UNMEASURED_BYTES
        else:
            self._since_check = 0
            is_large = now > self._memory + _CACHE_BYTES
        if is_large:
            self._since_check = 0
            del self._backend
            self._backend = _open(self._content)
            self._memory = _memory_bytes()


def open_fast(content: bytes, plainly: Callable[[list[str]], list[Ids]]) -> FastEncoder | str:
    """The fast encoder of a tokenizer.json, or the reason why there is none.

    It is tried on texts that are hard to encode, and on every added token in several places.
    """
    parsed = orjson.loads(content)
    rules = _rules(parsed)
    if isinstance(rules, str):
        return rules
    try:
        encoder = FastEncoder(content, rules, plainly)
    except ImportError:
        return "gigatoken is not installed (pip install 'ingot[data]')"
    except Exception as error:  # the library raises RuntimeError and its own panics' type
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return f"gigatoken does not support this tokenizer: {first}"
    for probe in (*PROBES, *_added_probes(parsed)):
        ids, _ = encoder.encode([probe])
        if not np.array_equal(ids, plainly([probe])[0]):
            return f"gigatoken encodes {probe[:40]!r} otherwise than tokenizers does"
    return encoder


def _open(content: bytes) -> Any:
    import gigatoken

    return gigatoken.Tokenizer.from_json(content).backend


def _rules(content: dict[str, Any]) -> _Rules | str:
    """What to look out for, or the reason why it would not help."""
    added = content.get("added_tokens") or []
    plain = [token for token in added if not token["special"]]
    for token in plain:
        flags = [name for name in ("lstrip", "rstrip", "single_word") if token[name]]
        if flags:
            return f"the added token {token['content']!r} has {flags[0]}"
    normalizer = content.get("normalizer")
    is_matched_later = [token for token in plain if token["normalized"]]
    if normalizer and is_matched_later and normalizer["type"] != "NFC":
        return f"the added token {is_matched_later[0]['content']!r} is found in normalised text"
    largest = max([0, *(token["id"] for token in added), *_vocabulary_ids(content["model"])])
    suspicious = np.zeros(largest + 1, dtype=bool)
    suspicious[[token["id"] for token in added if token["special"]]] = True
    return _Rules(suspicious, needs_nfc=bool(normalizer and plain))


def _vocabulary_ids(model: dict[str, Any]) -> Sequence[int]:
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, dict):
        return list(vocabulary.values())
    return range(len(vocabulary))


def _added_probes(content: dict[str, Any]) -> list[str]:
    """Every added token alone, within words, between spaces, twice, cut off, and before others."""
    tokens = [token["content"] for token in content.get("added_tokens") or []]
    tokens = tokens[: _MOST_ADDED // 2] + tokens[-_MOST_ADDED // 2 :]
    found = [text for t in dict.fromkeys(tokens) for text in (f"a{t}b", f"x \n {t} \n y", t + t)]
    found += [f"{t[:-1]} {t[1:]}{t.upper()}{t.lower()}{t}\u0338" for t in tokens]
    found += [one + other[1:] + " " + one[:-1] + other for one, other in pairwise(tokens)]
    return found


def _memory_bytes() -> int | None:
    """The memory that this process holds; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
