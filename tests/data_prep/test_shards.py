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
