import json
from collections import Counter
from itertools import islice

import pytest
import torch

from data_prep import Loader, Shards
from data_prep.loader import IGNORED, validation_batches
from runtime.errors import UserError
from tests.data_prep.samples import make_texts, write_jsonl

OPTIONS = {"seq_len": 16, "global_batch_size": 8, "seed": 3}


def test_batches_have_the_promised_shapes(prepared):
    batch = next(iter(Loader([(str(prepared), 1.0)], **OPTIONS, world_size=2, rank=1)))
    assert set(batch) == {"input_ids", "targets"}
    for tensor in batch.values():
        assert tensor.shape == (4, 16)
        assert tensor.dtype == torch.int64
    assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])


@pytest.mark.parametrize("seq_len", [1, 16, 100_000])
def test_an_epoch_is_every_token_exactly_once(prepared, seq_len):
    shards = Shards(prepared)
    stream = shards.read(0, shards.tokens).tolist()
    loader = Loader([(shards, 1.0)], seq_len=seq_len, global_batch_size=1, seed=5)
    epochs = []
    for epoch in range(2):
        assert loader.epoch == epoch
        batches = list(islice(loader, loader.samples_per_epoch))
        inputs, targets, order = Counter(), Counter(), []
        for batch in batches:
            real = batch["targets"][0] != IGNORED
            targets.update(batch["targets"][0][real].tolist())
            order.append(tuple(batch["input_ids"][0].tolist()))
            inputs.update(order[-1])
        padding = loader.samples_per_epoch * seq_len - len(stream)
        inputs[shards.eod_id] -= padding
        assert inputs == Counter(stream)
        assert targets == Counter(stream[1:])
        epochs.append(order)
    assert Counter(epochs[0]) == Counter(epochs[1])
    if seq_len == 16:
        assert epochs[0] != epochs[1]


def take(prepared, steps, world_size, start=0):
    loaders = [
        Loader([(prepared, 1.0)], **OPTIONS, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for loader in loaders:
        loader.step = start
    found = []
    for _ in range(steps):
        parts = [next(loader) for loader in loaders]
        found.append({name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    return found


def same(one, two):
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, two, strict=True)
    )


def test_samples_do_not_depend_on_world_size(prepared):
    whole = take(prepared, 30, 1)
    assert same(whole, take(prepared, 30, 2))
    assert same(whole, take(prepared, 30, 4))
    assert not same(whole, take(prepared, 30, 1, start=1))


def test_resume_goes_on_exactly_mid_epoch_and_across_epochs(prepared):
    first = Loader([(prepared, 1.0)], **OPTIONS)
    steps = 2 * first.samples_per_epoch // first.global_batch_size + 3
    batches = list(islice(first, steps))
    assert first.epoch == 2
    for at in (0, 1, 7, steps // 2 - 1, steps // 2, steps // 2 + 1, steps - 1):
        saved = Loader([(prepared, 1.0)], **OPTIONS)
        list(islice(saved, at))
        state = json.loads(json.dumps(saved.state_dict()))
        resumed = Loader([(prepared, 1.0)], **OPTIONS, rank=1, world_size=2)
        resumed.load_state_dict(state)
        rest = list(islice(resumed, steps - at))
        assert same(rest, [{k: v[4:] for k, v in b.items()} for b in batches[at:]])


def test_state_is_refused_where_the_order_would_change(prepared, run, tmp_path):
    state = Loader([(prepared, 1.0)], **OPTIONS).state_dict()
    for change in ({"seq_len": 32}, {"global_batch_size": 16}, {"seed": 4}):
        (name,) = change
        other = Loader([(prepared, 1.0)], **{**OPTIONS, **change})
        message = f"cannot resume: {name} was {OPTIONS[name]}"
        with pytest.raises(UserError, match=message) as caught:
            other.load_state_dict(state)
        assert caught.value.status == 2
    run(write_jsonl(tmp_path / "other.jsonl", make_texts(150)[1:]), "other", split__valid=0.2)
    with pytest.raises(UserError, match="cannot resume: the data was"):
        Loader([(tmp_path / "other", 1.0)], **OPTIONS).load_state_dict(state)
    two = Loader([(prepared, 1.0), (prepared, 2.0)], **OPTIONS).state_dict()
    with pytest.raises(UserError, match=r"the data was .*to give no more has weight 0"):
        Loader([(prepared, 1.0)], **OPTIONS).load_state_dict(two)
    with pytest.raises(UserError, match="step is -1"):
        Loader([(prepared, 1.0)], **OPTIONS).load_state_dict({**state, "step": -1})


def test_a_mixture_keeps_its_proportions_and_says_what_it_saw(prepared, run, tmp_path):
    tokenizer = {"tokenizer__path": str(prepared)}
    run(write_jsonl(tmp_path / "b.jsonl", make_texts(40, seed=9)), "b", **tokenizer)
    loader = Loader([(prepared, 0.75), (tmp_path / "b", 0.25)], **OPTIONS)
    sources = Counter()
    for step in range(50):
        seen = loader.documents(step)
        batch = loader.batch(step)
        assert len(seen) == 8
        sources.update(s.source for s in seen)
        for row, sample in zip(batch["input_ids"], seen, strict=True):
            shards = loader.shards[sample.source]
            expected = shards.read(sample.tokens.start, len(sample.tokens)).tolist()
            assert row.tolist()[: len(expected)] == expected
            joined = torch.cat([torch.tensor(shards[d].astype("int64")) for d in sample.documents])
            assert "".join(map(chr, expected)) in "".join(map(chr, joined.tolist()))
    assert abs(sources[0] - 300) <= 2
    loader.step = 50
    for source, epochs in enumerate(loader.epochs):
        windows = -(-loader.shards[source].tokens // 16)
        assert round(epochs * windows) == sources[source]


def test_sources_with_other_tokenizers_are_refused(prepared, run, tmp_path):
    path = write_jsonl(tmp_path / "b.jsonl", make_texts(40, seed=9))
    run(path, "b", tokenizer__train__vocab_size=280)
    with pytest.raises(UserError, match="different tokenizers"):
        Loader([(prepared, 1.0), (tmp_path / "b", 1.0)])


def test_one_tokenizer_with_other_roles_is_another_tokenizer(prepared, run, tmp_path):
    """Ids mean the same there, but the one ends documents with what is text to the other."""
    path = write_jsonl(tmp_path / "b.jsonl", make_texts(40, seed=9))
    run(path, "same", tokenizer__path=str(prepared))
    Loader([(prepared, 1.0), (tmp_path / "same", 1.0)])
    run(path, "b", tokenizer__path=str(prepared), tokenizer__eod="a")
    with pytest.raises(UserError, match="different tokenizers"):
        Loader([(prepared, 1.0), (tmp_path / "b", 1.0)])


def test_a_batch_that_ranks_cannot_share_is_refused(prepared):
    with pytest.raises(UserError, match=r"global_batch_size=8 .* by 3 ranks"):
        Loader([(prepared, 1.0)], **OPTIONS, world_size=3)


def test_document_boundaries(prepared):
    options = {**OPTIONS, "seq_len": 13}
    loader = Loader([(prepared, 1.0)], **options, document_boundaries=True)
    plain = Loader([(prepared, 1.0)], **options)
    assert loader.shards[0].tokens % 13, "the last window must need padding"
    eod = loader.shards[0].eod_id
    padded = 0
    for batch in islice(loader, loader.samples_per_epoch // 8 + 1):
        assert same([{k: batch[k] for k in ("input_ids", "targets")}], [next(plain)])
        starts, positions = [], []
        rows = zip(batch["input_ids"].tolist(), batch["targets"].tolist(), strict=True)
        for ids, targets in rows:
            # The last real token of the last window has no target either.
            real = 13 if IGNORED not in targets else targets.index(IGNORED) + 1
            padded += 13 - real
            for place in range(13):
                if place in (0, real) or (place < real and ids[place - 1] == eod):
                    starts.append(len(positions))
                    positions.append(0)
                else:
                    positions.append(positions[-1] + 1)
        assert batch["cu_seqlens"].tolist() == [*starts, len(positions)]
        assert batch["cu_seqlens"].dtype == torch.int32
        assert batch["position_ids"].flatten().tolist() == positions
    assert padded


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_each_token_once_on_every_rank_count(prepared, world_size):
    shards = Shards(prepared, "valid")
    per_rank = [
        list(validation_batches(shards, seq_len=16, batch_size=3, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    targets = []
    for number in range(len(per_rank[0])):
        for rank in range(world_size):
            kept = per_rank[rank][number]["targets"]
            assert kept.shape == (3, 16)
            targets += kept[kept != IGNORED].tolist()
    assert targets == shards.read(1, shards.tokens).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_on_the_first_sequences_is_the_same_on_every_rank_count(prepared, world_size):
    targets = []
    for rank in range(world_size):
        few = validation_batches(
            prepared, seq_len=16, batch_size=3, max_sequences=5, rank=rank, world_size=world_size
        )
        for batch in few:
            targets += batch["targets"][batch["targets"] != IGNORED].tolist()
    assert sorted(targets) == sorted(Shards(prepared, "valid").read(1, 5 * 16).tolist())
