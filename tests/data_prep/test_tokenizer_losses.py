"""Tokenizers that have no token for some text: it must never disappear unseen."""

import orjson
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data_prep.sentences import sentences
from data_prep.tokenizer import FILE, DocumentTokenizer
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_losses import loss_check, unknown_id
from data_prep.tokenizer_train import train
from tests.data_prep.samples import make_texts

LETTERS = {letter: number for number, letter in enumerate("<E>abcde f")}
NUMBERS = {token: number for number, token in enumerate(["<E>", "ab", "c", "[UNK]"])}


def saved(directory, model, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(["<E>"])
    tokenizer.save(str(directory / FILE))
    return DocumentTokenizer(directory, "<E>")


def test_characters_that_would_be_dropped_are_found(tmp_path):
    tokenizer = saved(tmp_path, models.BPE(vocab=LETTERS, merges=[]))
    assert len(tokenizer.encode(["abxde"])[0]) == 4  # as the library has it
    found = tokenizer.encode_batch(["abc", "abxde", "", "fed", "龘"])
    assert found.lost.tolist() == [False, True, False, False, True]
    assert found.lengths.tolist() == [4, 0, 0, 4, 0]
    assert tokenizer.decode(found.ids).replace(" ", "") == "abc<E>fed<E>"


def test_a_lost_sentence_is_a_lost_document(tmp_path):
    vocabulary = {c: n for n, c in enumerate("<E>abcd .\n!AB")}
    tokenizer = saved(tmp_path, models.BPE(vocab=vocabulary, merges=[]))
    texts = ["Ab. Ba! Aa. ", "Ab. Bx! Aa. ", "Ba. Ab.", "x"]
    found = tokenizer.encode_sentence_batch([sentences(text) for text in texts])
    assert found.lost.tolist() == [False, True, False, True]
    assert found.sentence_counts.tolist() == [3, 0, 2, 0]
    assert found.lengths.tolist() == [len(texts[0]) + 1, 0, len(texts[2]) + 1, 0]
    assert found.sentences.sum() == found.lengths.sum() == len(found.ids)


def test_normalisation_decides_what_is_known(tmp_path):
    parts = {"normalizer": normalizers.Lowercase(), "pre_tokenizer": pre_tokenizers.Whitespace()}
    tokenizer = saved(tmp_path, models.BPE(vocab=LETTERS, merges=[]), **parts)
    found = tokenizer.encode_batch(["ABC\tde", "ABX"])  # the tab is not the model's to know
    assert found.lost.tolist() == [False, True]


def test_bytes_that_are_missing(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}
    for known, expected in ((alphabet, [False] * 3), (alphabet[:200], [False, True, True])):
        vocabulary = {token: number for number, token in enumerate(["<E>", *known])}
        tokenizer = saved(tmp_path, models.BPE(vocab=vocabulary, merges=[]), **parts)
        assert tokenizer.encode_batch(["abcde", "你好", "é \x00"]).lost.tolist() == expected


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece(vocab={"<E>": 0, "ab": 1, "##c": 2}, unk_token="[UNK]"),
        models.WordLevel(vocab={"<E>": 0, "ab": 1, "abc": 2}, unk_token="[UNK]"),
        models.Unigram([("<E>", 0.0), ("a", -1.0), ("b", -1.0), ("c", -2.0)], None, False),
        models.BPE(vocab=LETTERS, merges=[], unk_token="<nothing>"),
    ],
)
def test_a_tokenizer_that_fails_on_unknown_text(tmp_path, model):
    tokenizer = saved(tmp_path, model)
    found = tokenizer.encode_batch(["ab", "xyz", "abc"])
    assert found.lost.tolist() == [False, True, False]
    assert (found.lengths > 0).tolist() == [True, False, True]


def test_the_unknown_are_counted_where_there_is_a_token(tmp_path):
    unigram = models.Unigram([("<E>", 0.0), ("<?>", 0.0), ("ab", -1.0), ("c", -2.0)], 1, False)
    tokenizer = saved(tmp_path, unigram)
    assert tokenizer.unknown_id == 1
    found = tokenizer.encode_batch(["ab", "abxc", "xabx"])
    assert found.unknown.tolist() == [0, 1, 2]
    assert not found.lost.any()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char", "unigram"])
def test_what_is_trained_loses_nothing_unseen(tmp_path, kind):
    train(TrainTokenizer(kind=kind, vocab_size=500), make_texts(100), tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / FILE))
    assert loss_check(raw, orjson.loads(raw.to_str())) is None
    assert unknown_id(raw) == {"bpe": None, "wordpiece": 1, "char": 1, "unigram": 1}[kind]


def test_byte_fallback_without_a_byte(tmp_path):
    entries = ["<E>", *"abc", *(f"<0x{byte:02X}>" for byte in range(256) if byte != 0xBD)]
    for skipped in (True, False):
        if not skipped:
            entries.append("<0xBD>")
        vocabulary = {token: number for number, token in enumerate(entries)}
        model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True)
        tokenizer = saved(tmp_path, model)
        assert tokenizer.encode_batch(["abc", "你"]).lost.tolist() == [False, skipped]
    content = orjson.loads((tmp_path / FILE).read_bytes())
    assert content["model"]["byte_fallback"]
