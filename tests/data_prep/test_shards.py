import resource
import tracemalloc

import numpy as np
import pytest

from data_prep import Shards
from data_prep import shards as module
from runtime.errors import UserError


def test_documents_and_the_stream_agree(prepared, monkeypatch):
    monkeypatch.setattr(module, "_MOST_OPEN", 2)  # readers are closed and opened again
    shards = Shards(str(prepared))
    assert len(shards.manifest.of_split("train")) > 3
    documents = list(shards)
    assert len(documents) == len(shards) > 100
    stream = np.concatenate(documents)
    assert len(stream) == shards.tokens
    assert np.array_equal(shards.read(0, shards.tokens + 99), stream)
    for start in range(0, shards.tokens, 97):
        assert np.array_equal(shards.read(start, 1000), stream[start : start + 1000])
        assert len(shards._open) <= 2
    assert len(shards.read(shards.tokens, 5)) == 0
    ends = np.cumsum([len(d) for d in documents])
    for start, end in [(0, 1), (5, 500), (ends[3], ends[4]), (ends[3] - 1, ends[4] + 1)]:
        expected = [i for i, e in enumerate(ends) if e > start and e - len(documents[i]) < end]
        assert list(shards.documents_between(start, end)) == expected
    assert np.array_equal(shards[-1], documents[-1])
    with pytest.raises(IndexError):
        shards[len(shards)]


def test_open_shards_are_shared_out_and_their_memory_does_not_grow(prepared):
    few, many = Shards(prepared), Shards(prepared)
    most = min(module._MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    assert module._most_open() <= most // 2
    list(few)
    few.read(0, few.tokens)
    tracemalloc.start()
    for start in range(0, many.tokens, 50):
        many.documents_between(start, start + len(many.read(start, 50)))
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        for start in range(0, many.tokens, 50):
            many.documents_between(start, start + len(many.read(start, 50)))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4096
    assert before < 8192 * len(many.manifest.of_split("train"))


def test_an_index_of_something_else_is_named(prepared):
    path = prepared / "train_00000.idx"
    good = path.read_bytes()
    for place, byte in ((0, 0), (9, 2), (17, 7), (18, good[18] + 1)):
        path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
        with pytest.raises(UserError, match=r"train_00000.idx: .*; prepare the data again"):
            Shards(prepared)[0]


def test_both_splits_share_what_they_should(prepared):
    train, valid = Shards(prepared), Shards(prepared, "valid")
    assert train.fingerprint == valid.fingerprint
    assert train.vocab_size == 300
    assert train.eod_id == 0
    assert (train.tokenizer_dir / "tokenizer.json").exists()
    assert len(train) + len(valid) == train.manifest.documents


def test_an_absent_split_is_named_with_those_there_are(prepared):
    with pytest.raises(UserError, match=r"no split 'test', only train, valid"):
        Shards(prepared, "test")
