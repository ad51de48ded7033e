"""Train a tokenizer. The result depends on the texts alone, not on threads or on chance."""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import orjson
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from data_prep.atomic import write_atomic
from data_prep.pieces import cut
from data_prep.tokenizer import CONFIG_FILE, FILE, default_config
from data_prep.tokenizer_config import BERT_SPECIALS, EOD, UNKNOWN, TrainTokenizer
from runtime.errors import UserError

DEFAULT_VOCAB_SIZE = 32768
_BERT_ALPHABET = 8000  # single characters a WordPiece vocabulary may start from
_CONTINUES = "##"


def train(options: TrainTokenizer, texts: Iterable[str], directory: Path) -> None:
    """Train a tokenizer and write tokenizer.json and tokenizer_config.json.

    Raises UserError when the texts are empty or the vocabulary is too small for them.
    """
    rest = iter(texts)
    first = next(rest, None)
    if first is None:
        raise UserError("no text to train the tokenizer on: every record is empty or unreadable")
    pieces = (piece for text in chain([first], rest) for piece in cut(text))
    size = options.vocab_size or DEFAULT_VOCAB_SIZE
    if options.is_sentencepiece:
        tokenizer = _train_sentencepiece(pieces, size, options)
    elif options.kind == "char":
        tokenizer = _train_characters(pieces, options)
    elif options.kind == "bpe":
        tokenizer = _train_bpe(pieces, size, options)
    else:
        tokenizer = _train_wordpiece(pieces, size, options)
    tokenizer.add_special_tokens(list(options.specials))
    if options.is_bert:
        tokenizer.post_processor = _bert_processor()
        config = _bert_config(options)
    else:
        unknown = {"unk_token": UNKNOWN} if UNKNOWN in options.specials else {}
        config = default_config(EOD) | unknown
    if options.extra_tokens:
        config["extra_special_tokens"] = list(options.extra_tokens)
    write_atomic(directory / CONFIG_FILE, orjson.dumps(config, option=orjson.OPT_INDENT_2) + b"\n")
    write_atomic(directory / FILE, tokenizer.to_str(pretty=True).encode("utf-8"))


def _train_bpe(texts: Iterable[str], size: int, options: TrainTokenizer) -> Any:
    """Byte-level BPE with GPT-2's word pattern: every string can be written and read back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=options.min_frequency,
        special_tokens=list(options.specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_sentencepiece(texts: Iterable[str], size: int, options: TrainTokenizer) -> Any:
    """Unigram or BPE on words with ▁ for the space before them; other characters are bytes."""
    from data_prep.tokenizer_sentencepiece import convert, learn

    content, _ = convert(learn(options, texts, size), Path("the trained model"))
    return Tokenizer.from_str(content.decode("utf-8"))


def _train_characters(texts: Iterable[str], options: TrainTokenizer) -> Any:
    """One token for each character. BPE without merges does it in one native pass."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    limit = None if options.vocab_size is None else options.vocab_size - len(options.specials)
    entries = [*options.specials, *sorted(by_count[:limit])]
    vocabulary = {token: number for number, token in enumerate(entries)}
    unknown = options.specials[1]  # after the end-of-text token, or BERT's padding
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token=unknown, fuse_unk=False)
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _train_wordpiece(texts: Iterable[str], size: int, options: TrainTokenizer) -> Any:
    """BERT's WordPiece.

    The library's trainer numbers the continuing characters ("##a") in the order of a hash map
    that differs in every process, and later ties go by number. Here they are listed
    beforehand, sorted, as if they were special tokens; the vocabulary alone is kept.
    """
    normalizer = _bert_normalizer(options.lowercase)
    sample = [normalizer.normalize_str(text) for text in texts]
    counts: Counter[str] = Counter()
    later: set[str] = set()  # characters that can stand inside a word
    for text in sample:
        counts.update(text)
        later.update(b for a, b in set(pairwise(text)) if not a.isspace())
    words = [c for c in counts if not c.isspace()]
    by_count = sorted(words, key=lambda character: (-counts[character], character))
    alphabet = by_count[: min(_BERT_ALPHABET, max(size // 2, 1))]
    continuing = [_CONTINUES + c for c in sorted(alphabet) if c in later and not _is_mark(c)]
    needed = len(options.specials) + len(alphabet) + len(continuing)
    if size < needed:
        raise UserError(
            f"tokenizer.train.vocab_size={size} cannot hold the {needed} single characters "
            "of this text; raise it"
        )
    learner = Tokenizer(models.WordPiece(unk_token=BERT_SPECIALS[1]))
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=options.min_frequency,
        special_tokens=[*options.specials, *continuing],
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUES,
        show_progress=False,
    )
    learner.train_from_iterator(sample, trainer)
    return bert_tokenizer(learner.get_vocab(), options.lowercase)


def _is_mark(character: str) -> bool:
    """Whether BERT's pre-tokenizer makes a word of this character alone."""
    return unicodedata.category(character).startswith("P") or character in string.punctuation


def _bert_normalizer(lowercase: bool) -> Any:
    return normalizers.BertNormalizer(lowercase=lowercase)


def bert_tokenizer(vocabulary: dict[str, int], lowercase: bool) -> Any:
    """BERT's tokenizer over a vocabulary, without special tokens."""
    unknown = BERT_SPECIALS[1]
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=unknown, continuing_subword_prefix=_CONTINUES)
    )
    tokenizer.normalizer = _bert_normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)
    return tokenizer


def _bert_processor() -> Any:
    """[CLS] text [SEP], and [CLS] one [SEP] other [SEP] for a pair."""
    start, end = BERT_SPECIALS[2:4]
    ids = [(token, BERT_SPECIALS.index(token)) for token in (end, start)]
    return processors.BertProcessing(*ids)


def _bert_config(options: TrainTokenizer) -> dict[str, Any]:
    pad, unknown, start, end, mask = BERT_SPECIALS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "unk_token": unknown,
        "cls_token": start,
        "sep_token": end,
        "mask_token": mask,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        **({"do_lower_case": options.lowercase} if options.kind == "wordpiece" else {}),
    }
