"""The fast encoder against `tokenizers` itself, on every kind of added token and of text."""

import itertools
import random

import numpy as np
import orjson
import pytest
import tokenizers

from data_prep import tokenizer_batches, tokenizer_fast
from data_prep.indexed import ShardWriter
from data_prep.pieces import cut
from data_prep.sentences import sentences
from data_prep.tokenizer import FILE, DocumentTokenizer
from data_prep.tokenizer_batches import EncodersDifferError
from data_prep.tokenizer_config import TrainTokenizer
from data_prep.tokenizer_train import train
from runtime.errors import UserError
from tests.data_prep.samples import make_texts

TEXTS = make_texts(200)
EOD = "<|endoftext|>"
HARD = [
    "",
    " ",
    "你好，世界！",
    "😀👩‍👩‍👧",
    "\x00\x07",
    "a" * 5000,
    f"x {EOD} y",
    EOD,
    "e\u0301 ﬁ ½",
    "\ufeff",
]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def trained(directory, kind="bpe", **options):
    directory.mkdir(exist_ok=True)
    train(TrainTokenizer(kind=kind, **options), TEXTS, directory)
    return directory


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bpe"), vocab_size=400)


def changed(bpe, directory, change):
    content = orjson.loads((bpe / FILE).read_bytes())
    change(content)
    directory.mkdir(exist_ok=True)
    (directory / FILE).write_bytes(orjson.dumps(content))
    return directory


def add(content, token, **flags):
    number = 400 + sum(t["id"] >= 400 for t in content["added_tokens"])
    entry = {"id": number, "content": token} | dict.fromkeys(FLAGS, False) | flags
    content["added_tokens"].append(entry)


def documents_of(encoded):
    parts = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
    return [part.tolist() for part in parts]


def same_as_plain(directory, texts, backend="gigatoken"):
    """Check a batch against one text at a time by `tokenizers`; return what encoded it."""
    tokenizer = DocumentTokenizer(directory)
    raw = tokenizers.Tokenizer.from_file(str(directory / FILE))
    raw.encode_special_tokens = True
    plain = [raw.encode(text, add_special_tokens=False).ids for text in texts]
    expected = [[*ids, tokenizer.eod_id] if ids else [] for ids in plain]
    encoded = tokenizer.encode_batch(texts)
    assert documents_of(encoded) == expected
    assert tokenizer.backend == backend, tokenizer.backend_reason
    return tokenizer


def test_a_batch_has_the_ids_of_its_texts(bpe):
    tokenizer = same_as_plain(bpe, HARD + TEXTS)
    encoded = tokenizer.encode_batch(HARD + TEXTS)
    assert encoded.ids.dtype == np.int32
    assert (encoded.ids == tokenizer.eod_id).sum() == len(HARD + TEXTS) - 1  # "" has no token
    assert encoded.unknown.tolist() == [0] * len(HARD + TEXTS)
    assert tokenizer.encode_batch([]).ids.shape == tokenizer.encode_batch([""]).ids.shape == (0,)


@pytest.mark.parametrize("kind", ["wordpiece", "char"])
def test_what_gigatoken_does_not_support_is_encoded_by_tokenizers(tmp_path, kind):
    directory = trained(tmp_path, kind, vocab_size=500)
    tokenizer = same_as_plain(directory, [*TEXTS, "龘a龘"], "tokenizers")
    assert tokenizer.backend == "tokenizers"
    assert tokenizer.backend_reason.startswith("gigatoken does not support this tokenizer")
    counted = tokenizer.encode_batch(["龘 river", "the river", "", "龘 river 龘"])
    assert (counted.unknown > 0).tolist() == [True, False, False, True]
    with pytest.raises(UserError, match=r"tokenizer\.backend=gigatoken: gigatoken does not"):
        _ = DocumentTokenizer(tmp_path, backend="gigatoken").backend


def test_the_backend_can_be_chosen_and_may_be_missing(bpe, monkeypatch):
    tokenizer = DocumentTokenizer(bpe, backend="tokenizers")
    assert (tokenizer.backend, tokenizer.backend_reason) == (
        "tokenizers",
        "tokenizer.backend=tokenizers",
    )
    fast = DocumentTokenizer(bpe, backend="gigatoken").encode_batch(HARD + TEXTS)
    for one, other in zip(fast[:3], tokenizer.encode_batch(HARD + TEXTS)[:3], strict=True):
        assert np.array_equal(one, other)
    monkeypatch.setitem(__import__("sys").modules, "gigatoken", None)
    assert "pip install 'ingot[data]'" in DocumentTokenizer(bpe).backend_reason
    with pytest.raises(UserError, match="is not installed"):
        _ = DocumentTokenizer(bpe, backend="gigatoken").backend


@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=5)))
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_added_tokens_of_every_kind(bpe, tmp_path, flags, normalizer):
    """Whatever backend is taken, each text has the ids that `tokenizers` gives it alone."""

    def change(content):
        add(content, "<Tool>", **dict(zip(FLAGS, flags, strict=True)))
        add(content, "K9", special=True)
        content["normalizer"] = normalizer

    directory = changed(bpe, tmp_path / "t", change)
    parts = [
        "<Tool>",
        "<Tool",
        "Tool>",
        "<tool>",
        "K9",
        "\u212a9",
        "<Tool\u0338",
        "<Tool>\u0338",
        " ",
        "\n\n",
        "x",
        "the river",
        EOD,
        "\u037e",
        "e\u0301",
    ]
    rng = random.Random(0)
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 5))) for _ in range(300)]
    takes_whole = not flags[4] and any(flags[:3])
    same_as_plain(directory, parts + texts, "tokenizers" if takes_whole else "gigatoken")


def test_a_normaliser_that_hides_added_tokens(bpe, tmp_path):
    def change(content):
        add(content, "<tool>", normalized=True)
        content["normalizer"] = {"type": "NFKC"}

    directory = changed(bpe, tmp_path / "t", change)
    tokenizer = same_as_plain(directory, ["＜tool＞", "a<tool>b"], "tokenizers")
    assert "'<tool>' is found in normalised text" in tokenizer.backend_reason


def test_a_tokenizer_that_is_encoded_otherwise_is_refused(bpe, monkeypatch):
    real = tokenizer_fast._open

    class Wrong:
        def __init__(self, content):
            self.inner = real(content)

        def encode_batch(self, pieces, parallel):
            return self.inner.encode_batch([p.replace("½", "1") for p in pieces], parallel=parallel)

    monkeypatch.setattr(tokenizer_fast, "_open", Wrong)
    tokenizer = DocumentTokenizer(bpe)
    assert tokenizer.backend == "tokenizers"
    assert "otherwise than tokenizers does" in tokenizer.backend_reason


def test_documents_of_every_unit_are_compared(bpe, monkeypatch):
    """A fast encoder that errs on some documents is found by the sample, the same one each time."""
    tokenizer = DocumentTokenizer(bpe)
    assert tokenizer.backend == "gigatoken"
    fast = tokenizer._batches._opened
    real = fast.encode

    def wrong(pieces):
        ids, lengths = real(pieces)
        return np.where(ids == ids[0], ids + 1, ids), lengths

    texts = [f"{n} {text}" for n, text in enumerate(TEXTS)]
    compared = []
    plainly = tokenizer_batches.encode_plainly
    monkeypatch.setattr(
        tokenizer_batches,
        "encode_plainly",
        lambda raw, pieces: compared.append(list(pieces)) or plainly(raw, pieces),
    )

    def run(unit, size, is_fast=True):
        compared.clear()
        tokenizer.begin_unit(unit, is_fast)
        many = texts * 20
        for start in range(0, len(many), size):
            tokenizer.encode_batch(many[start : start + size])
        return [text for pieces in compared for text in pieces]

    chosen = run(7, 50)
    assert chosen == run(7, 333)  # however the unit is cut into batches
    assert chosen[:2] == texts[:2]
    assert 4 <= len(chosen) <= 6  # two, and one in 1024 of 4000
    assert run(8, 50)[2:] != chosen[2:]
    fast.encode = wrong
    with pytest.raises(EncodersDifferError, match="document 0 of unit 7"):
        run(7, 50)
    assert len(run(7, 4000, is_fast=False)) == 4000
    with pytest.raises(EncodersDifferError):  # the next unit begins as if nothing had been
        run(8, 50)


def test_a_part_of_a_long_document_is_compared(bpe, monkeypatch):
    monkeypatch.setattr(tokenizer_batches, "PIECE_CHARACTERS", 4000)
    monkeypatch.setattr(tokenizer_batches, "_COMPARED_CHARACTERS", 1000)
    long = "\n".join(t.replace("\n", " ").strip() for t in TEXTS * 3)
    tokenizer = DocumentTokenizer(bpe)
    parts = np.concatenate(tokenizer.encode(list(cut(long, 4000)))).tolist()
    one, whole, other = documents_of(tokenizer.encode_batch(["a", long, "b"]))
    assert (len(one), whole, len(other)) == (2, [*parts, tokenizer.eod_id], 2)
    fast = tokenizer._batches._opened
    real = fast.encode
    sizes = []

    def watched(pieces):
        sizes.append(max(map(len, pieces)))
        return real(pieces)

    fast.encode = watched
    tokenizer.begin_unit(0)
    tokenizer.encode_batch([long])
    assert sizes == [max(map(len, cut(long, 4000))), 1000]


def test_an_empty_cache_changes_nothing(bpe, monkeypatch):
    tokenizer = DocumentTokenizer(bpe)
    expected = [tokenizer.encode_batch(TEXTS).ids.tolist() for _ in range(2)]
    opened = []
    real = tokenizer_fast._open
    monkeypatch.setattr(tokenizer_fast, "_open", lambda c: opened.append(1) or real(c))
    monkeypatch.setattr(tokenizer_fast, "_CHECK_BYTES", 1)
    monkeypatch.setattr(tokenizer_fast, "_CACHE_BYTES", -(1 << 40))
    assert [tokenizer.encode_batch(TEXTS).ids.tolist() for _ in range(2)] == expected
    assert len(opened) >= 2
    monkeypatch.setattr(tokenizer_fast, "_memory_bytes", lambda: None)
    monkeypatch.setattr(tokenizer_fast, "_UNMEASURED_BYTES", 1)
    opened.clear()
    assert tokenizer.encode_batch(TEXTS).ids.tolist() == expected[0]
    assert opened


@pytest.mark.parametrize("by_sentence", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_many_documents_give_the_bytes_of_one_at_a_time(tmp_path, kind, by_sentence):
    tokenizer = DocumentTokenizer(trained(tmp_path / "t", kind, vocab_size=500))
    texts = ["\u200d\x00", *TEXTS, "", "One. Two!\n\nThree? ", *TEXTS[::-1], ""]
    files = []
    for name in ("one", "many"):
        directory = tmp_path / name
        directory.mkdir()
        with ShardWriter(directory, "train", "train", tokenizer.vocab_size) as writer:
            if name == "many":
                for start in range(0, len(texts), 90):
                    part = texts[start : start + 90]
                    if by_sentence:
                        made = tokenizer.encode_sentence_batch([sentences(t) for t in part])
                    else:
                        made = tokenizer.encode_batch(part)
                    writer.add_many(made.ids, made.lengths, made.sentences, made.sentence_counts)
            else:
                encoded = tokenizer.encode_sentences(
                    [sentences(t) if by_sentence else [t] for t in texts]
                )
                for ids, ends in encoded:
                    if len(ids):
                        ends[-1] += 1
                        row = np.append(ids, np.int32(tokenizer.eod_id))
                        writer.add(row, ends if by_sentence else None)
            writer.finish()
        files.append([(directory / f"train.{end}").read_bytes() for end in ("bin", "idx")])
    assert files[0] == files[1]


def test_the_end_belongs_to_the_last_sentence_with_tokens(tmp_path):
    tokenizer = DocumentTokenizer(trained(tmp_path, "wordpiece", vocab_size=500))
    documents = [["the river", "\x00", "a stone", "\x00"], ["\x00"], ["\x00", "the"]]
    made = tokenizer.encode_sentence_batch(documents)
    assert made.sentence_counts.tolist() == [2, 0, 1]
    river, stone, the = (len(ids) for ids in tokenizer.encode(["the river", "a stone", "the"]))
    assert made.sentences.tolist() == [river, stone + 1, the + 1]
    assert made.lengths.tolist() == [river + stone + 1, 0, the + 1]


def test_lengths_that_do_not_fit_are_refused(tmp_path):
    with ShardWriter(tmp_path, "train", "train", 300) as writer:
        three = np.array([1, 2, 3])
        with pytest.raises(ValueError, match="add up to 3"):
            writer.add_many(three, np.array([1, 1]))
        with pytest.raises(ValueError, match="outside"):
            writer.add_many(np.array([300]), np.array([1]))
        with pytest.raises(UserError, match="longer than the format allows"):
            writer.add_many(three, np.array([2**31]))
        with pytest.raises(ValueError, match="sentence counts"):
            writer.add_many(three, np.array([3]), np.array([1, 2]), np.array([1]))
