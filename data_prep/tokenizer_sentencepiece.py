"""sentencepiece: its models as an equal tokenizer.json, and its trainer.

Kudo and Richardson 2018 (arXiv:1808.06226); Unigram: Kudo 2018 (arXiv:1804.10959). A model is used
only after sentencepiece itself gave the same ids for texts that are hard to encode.
"""

import base64
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers

from data_prep.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNUSED,
    USER_DEFINED,
    Model,
    parse,
)
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_fast import PROBES
from runtime.errors import EXIT_BAD_INPUT, UserError

_SPACE = "▁"
_LINE_CHARACTERS = 1000  # the trainer leaves out lines of more than _LINE_BYTES
_LINE_BYTES = 1 << 14
_CLUSTERS = re.compile("\r(?=\n)|(?<=\u1e9b)\u0323")
_THREADS = 4  # their number decides in which order scores are added up
_SYMBOL_SCORE = -0.1
_SAMPLES, _SAMPLE_PIECES, _SAMPLE_SYMBOLS = 500, 12, 100


def convert(data: bytes, path: Path) -> tuple[bytes, dict[str, Any]]:
    """A model as tokenizer.json and the settings that belong into tokenizer_config.json.

    path: for messages. Raises UserError where the two would not encode equally.
    """
    model = parse(data, path)
    content = orjson.dumps(_tokenizer_json(model), option=orjson.OPT_INDENT_2)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        raise UserError(f"{path}: cannot become a tokenizer.json: {error}") from error
    tokenizer.encode_special_tokens = True
    _verify(model, data, tokenizer, path)
    return content, _config(model)


def learn(options: TrainTokenizer, texts: Iterable[str], size: int) -> bytes:
    """Train a model on texts: Unigram, or BPE; what it does not know it writes as bytes.

    The text is not normalised. Raises UserError where the vocabulary cannot be made so small.
    """
    sentencepiece = _package()
    written = io.BytesIO()
    specials = options.specials
    if options.is_bert:
        roles = dict(zip(("pad", "unk", "bos", "eos"), specials[:4], strict=True))
        controls = specials[4:]
    else:
        roles = {"eos": specials[0], "unk": specials[1]}
        controls = specials[2:]
    arguments: dict[str, Any] = {f"{role}_id": -1 for role in ("bos", "pad")}
    for number, (role, token) in enumerate(roles.items()):
        arguments |= {f"{role}_id": number, f"{role}_piece": token}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=written,
            model_type=options.kind,
            vocab_size=size,
            control_symbols=list(controls),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            max_sentence_length=_LINE_BYTES,
            num_threads=_THREADS,
            minloglevel=2,
            **arguments,
        )
    except RuntimeError as error:
        why = str(error).rsplit("] ", maxsplit=1)[-1].strip() or str(error)
        raise UserError(f"sentencepiece cannot train: {why}") from error
    return written.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines that are short enough; of a longer one the parts."""
    for text in texts:
        for line in text.split("\n"):
            # It ends a text at this character, and takes a tab for the end of a sentence.
            line = line.replace("\0", "")
            for start in range(0, len(line), _LINE_CHARACTERS):
                yield line[start : start + _LINE_CHARACTERS]


def _package() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "sentencepiece models need sentencepiece; pip install 'ingot[data]'",
            status=EXIT_BAD_INPUT,
        ) from error
    return sentencepiece


def _tokenizer_json(model: Model) -> dict[str, Any]:
    """The tokenizer that `tokenizers` makes of a model."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model),
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(model))},
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": None,
        "decoder": _decoder(model),
        "model": _bpe(model) if model.kind == BPE else _unigram(model),
    }


def _added_tokens(model: Model) -> list[dict[str, Any]]:
    """The special tokens; in a BPE also the symbols that are never cut."""
    unknown = [model.unknown_id]
    special = sorted(unknown + model.of_kind(CONTROL))
    symbols = model.of_kind(USER_DEFINED) if model.kind == BPE else []
    return [
        {
            "id": number,
            "content": model.pieces[number].text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": number in special,
        }
        for number in sorted(special + symbols)
    ]


def _normalizers(model: Model) -> Iterator[dict[str, Any]]:
    if model.charsmap:
        packed = base64.b64encode(model.charsmap).decode("ascii")
        yield {"type": "Precompiled", "precompiled_charsmap": packed}
    if model.removes_spaces:
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        yield {"type": "Replace", "pattern": {"Regex": rf"\A +|[ {_SPACE}]+\z"}, "content": ""}
    if model.adds_prefix:
        yield {"type": "Prepend", "prepend": _SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def _pre_tokenizer(model: Model) -> dict[str, Any] | None:
    """Cuts that no piece crosses: they change no id, and make the encoding fast."""
    if model.kind == BPE:
        return None
    cuts = []
    # Here every entry of the vocabulary would be found in a text, also those that only a
    # program may write: each is cut after its first character.
    hidden = sorted(
        model.pieces[n].text for n in [*model.of_kind(CONTROL, UNUSED), model.unknown_id]
    )
    groups: dict[str, list[str]] = {}
    for text in hidden:
        if len(text) > 1:
            groups.setdefault(text[0], []).append(re.escape(text[1:]))
    if model.of_kind(BYTE):
        groups.setdefault("<", []).append("0x[0-9A-F]{2}>")
    for first, rests in groups.items():
        cuts.append(f"(?<={re.escape(first)})(?={'|'.join(rests)})")
    inside = re.compile(f"[^{_SPACE}]{_SPACE}")
    if not any(inside.search(piece.text) for piece in model.pieces):
        cuts.append(f"(?<=[^{_SPACE}])(?={_SPACE})")
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(cuts)},
        "behavior": "Isolated",
        "invert": False,
    }


def _decoder(model: Model) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.adds_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: Model) -> dict[str, Any]:
    # sentencepiece takes this score for symbols that are never cut, whatever it stored for them.
    scores = [_SYMBOL_SCORE if p.kind == USER_DEFINED else p.score for p in model.pieces]
    return {
        "type": "Unigram",
        "unk_id": model.unknown_id,
        "vocab": [[piece.text, score] for piece, score in zip(model.pieces, scores, strict=True)],
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: Model) -> dict[str, Any]:
    """The merges: of every two pieces that make a third, in the order of its score."""
    known = {p.text: n for n, p in enumerate(model.pieces) if p.kind in (NORMAL, USER_DEFINED)}
    merges: list[tuple[float, int, str, str]] = []
    for text, number in known.items():
        piece = model.pieces[number]
        if piece.kind != NORMAL:
            continue
        for at in range(1, len(text)):
            if text[:at] in known and text[at:] in known:
                merges.append((-piece.score, number, text[:at], text[at:]))
    merges.sort()
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unknown_id].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: number for number, piece in enumerate(model.pieces)},
        "merges": [[left, right] for _, _, left, right in merges],
    }


def _config(model: Model) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": model.pieces[model.unknown_id].text,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    roles = {"bos": model.bos_id, "eos": model.eos_id, "pad": model.pad_id}
    for role, number in roles.items():
        if 0 <= number < len(model.pieces) and model.pieces[number].kind == CONTROL:
            config[f"{role}_token"] = model.pieces[number].text
    return config


def _verify(model: Model, data: bytes, tokenizer: Any, path: Path) -> None:
    """Refuse a conversion that sentencepiece's own encoder does not agree with.

    Ways to cut a run of equal characters can have equal scores; which one is taken is a matter of
    rounding: such a text has the same tokens in another order.
    """
    theirs = _package().SentencePieceProcessor(model_proto=data)
    for text in _samples(model):
        own = tokenizer.encode(text, add_special_tokens=False).ids
        expected = theirs.encode(text)
        is_tie = model.kind == UNIGRAM and sorted(own) == sorted(expected)
        if own != expected and not is_tie:
            raise UserError(
                f"{path}: as a tokenizer.json it would encode {text[:40]!r} otherwise than "
                "sentencepiece does; use a tokenizer.json made for it",
                status=EXIT_BAD_INPUT,
            )


def _samples(model: Model) -> Iterator[str]:
    """Hard texts, and texts made of the model's own pieces, the same each time."""
    for probe in PROBES:
        # `tokenizers` looks such sequences up as one character where a model normalises text.
        yield _CLUSTERS.sub("", probe) if model.charsmap else probe
    for number in model.of_kind(USER_DEFINED)[:_SAMPLE_SYMBOLS]:
        symbol = model.pieces[number].text.replace(_SPACE, " ")
        yield f"a {symbol} b{symbol}c  {symbol}"
    numbers = model.of_kind(NORMAL, USER_DEFINED)
    if numbers:
        rng = np.random.default_rng(0)
        for chosen in rng.choice(numbers, size=(_SAMPLES, _SAMPLE_PIECES)).tolist():
            yield "".join(model.pieces[number].text for number in chosen).replace(_SPACE, " ")
