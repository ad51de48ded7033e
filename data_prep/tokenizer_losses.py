"""Text that a tokenizer has no token for, and no token to say so: it would disappear unseen.

What normalisation or the cutting into words takes away is wanted, and not looked at here.
"""

from collections.abc import Callable
from typing import Any

import orjson

_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what the vocabulary cannot say; None where there is none."""
    model = tokenizer.model
    if hasattr(model, "unk_token"):
        return None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)
    number: int | None = orjson.loads(tokenizer.to_str())["model"].get("unk_id")
    return number


def loss_check(tokenizer: Any, content: dict[str, Any]) -> Callable[[str], bool] | None:
    """Tells whether a text has a part that would be lost; None where no text has.

    tokenizer: a `tokenizers.Tokenizer`; content: its tokenizer.json. A tokenizer with a token for
    unknown text loses none of it unseen, and neither does one that knows every byte.
    """
    model = content["model"]
    if unknown_id(tokenizer) is not None:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if model.get("byte_fallback") and vocabulary.keys() >= _BYTES:
        return None
    if model["type"] != "BPE" or model.get("unk_token") is not None:
        return _raises(tokenizer)  # it does not skip what it does not know: it fails
    parts = orjson.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    if b'"ByteLevel"' in parts and vocabulary.keys() >= _byte_characters():
        return None
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    known = {
        token.removeprefix(prefix).removesuffix(suffix)
        for token in vocabulary
        if len(token.removeprefix(prefix).removesuffix(suffix)) == 1
    }
    return lambda text: not known.issuperset("".join(_words(tokenizer, text)))


def _byte_characters() -> set[str]:
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def _raises(tokenizer: Any) -> Callable[[str], bool]:
    def is_lost(text: str) -> bool:
        try:
            tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # the library raises bare Exception for whatever is wrong
            return True
        return False

    return is_lost


def _words(tokenizer: Any, text: str) -> list[str]:
    """The words that the model is given; added tokens in the text are not taken out of it."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
