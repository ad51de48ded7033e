import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from data_prep import Loader, Shards, packing
from data_prep.loader import IGNORED, validation_batches
from data_prep.packing import best_fit
from data_prep.samples import Layout
from runtime.errors import UserError

FIT = Layout("best_fit", 48)
LAYOUTS = [FIT, Layout("best_fit", 48, 2, drops_eod=True), Layout("padded", 20, 3)]


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK_PIECES", 32)


def naive_best_fit(sizes, capacity):
    """One piece at a time, from the definition; how many bins."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [(room, at) for at, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting)[1]] -= size
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_bins_are_those_of_best_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    sizes = rng.integers(1, capacity + 1, rng.integers(0, 300))
    if seed % 2:
        sizes = np.minimum(rng.geometric(0.2, 300), capacity)  # many small ones
    bins, placements = best_fit(np.bincount(sizes, minlength=capacity + 1), capacity)
    rooms, placed = [capacity] * bins, Counter()
    for size, used, each in placements:
        for number in used:
            rooms[number] -= each * size
            placed[size] += each
    assert placed == Counter(sizes.tolist())
    assert sorted(rooms) == naive_best_fit(sizes, capacity)
    assert min(rooms, default=0) >= 0


def epoch_samples(loader, epoch=0):
    """The samples of one epoch of a loader whose global batch is one sample."""
    size = loader.samples_per_epoch
    return [loader.samples(step)[0] for step in range(epoch * size, (epoch + 1) * size)]


def expected_documents(shards, layout):
    return [d[: len(d) - layout.drops_eod].tolist() for d in shards]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_epoch_holds_every_token_once_and_cuts_no_document_that_fits(prepared, layout):
    shards = Shards(prepared)
    documents = expected_documents(shards, layout)
    room = layout.seq_len - layout.overhead
    loader = Loader([(shards, 1.0)], layout=layout, collate=list, global_batch_size=1, seed=5)
    orders = []
    for epoch in range(2):
        found = {}
        samples = epoch_samples(loader, epoch)
        for sample in samples:
            used = sum(len(s.tokens) + layout.overhead for s in sample.segments)
            assert used <= layout.seq_len
            assert sample.segments
            for s in sample.segments:
                found.setdefault(s.document, []).append(s)
        assert len(found) == len(documents)
        for number, pieces in found.items():
            whole = documents[number]
            assert len(pieces) == -(-len(whole) // room)
            starts = range(0, len(whole), room)
            assert sorted(
                (-1 if p.previous is None else p.previous, *p.tokens) for p in pieces
            ) == (sorted((-1 if a == 0 else whole[a - 1], *whole[a : a + room]) for a in starts))
            assert all(p.source == 0 and not len(p.sentence_ends) for p in pieces)
        orders.append([s.segments[0].document for s in samples])
        if layout.packing == "padded":
            assert all(len(s.segments) == 1 for s in samples)
    assert Counter(orders[0]) == Counter(orders[1])
    assert np.mean(np.array(orders[0]) == np.array(orders[1])) < 0.2
    indices = [s.index for epoch in range(2) for s in epoch_samples(loader, epoch)]
    assert indices == list(range(2 * loader.samples_per_epoch))


def test_the_test_data_has_several_chunks_and_cut_documents(prepared):
    loader = Loader([(prepared, 1.0)], layout=FIT, global_batch_size=1)
    assert len(loader.order.cuttings[0]._rows) > 2
    report = loader.packing_report()
    assert 0 < report.cut_documents < report.documents == len(loader.shards[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_report_counts_what_an_epoch_holds(prepared, layout):
    shards = Shards(prepared)
    loader = Loader([(shards, 1.0)], layout=layout, collate=list, global_batch_size=1)
    samples = epoch_samples(loader)
    segments = [s for sample in samples for s in sample.segments]
    per_document = Counter(s.document for s in segments)
    report = loader.packing_report()
    assert report.samples == len(samples)
    assert report.segments == len(segments)
    assert report.documents == len(per_document)
    assert report.cut_documents == sum(count > 1 for count in per_document.values())
    assert report.tokens == sum(len(s.tokens) for s in segments)
    assert report.positions == len(samples) * layout.seq_len
    used = report.tokens + layout.overhead * len(segments)
    assert report.utilisation == pytest.approx(used / report.positions)
    assert f"{report.cut_documents:,} of them cut" in str(report)


def test_the_report_of_windows_counts_documents_that_lie_in_two(prepared):
    shards = Shards(prepared)
    loader = Loader([(shards, 1.0)], seq_len=48, global_batch_size=1)
    cut, at = 0, 0
    for document in shards:
        cut += at // 48 != (at + len(document) - 1) // 48
        at += len(document)
    report = loader.packing_report()
    assert (report.cut_documents, report.documents) == (cut, len(shards))
    assert (report.tokens, report.samples) == (shards.tokens, -(-shards.tokens // 48))


def key(sample):
    return sample.index, [(s.document, s.previous, s.tokens.tolist()) for s in sample.segments]


@pytest.mark.parametrize("layout", [*LAYOUTS, Layout("documents", 16, lookahead=1)], ids=str)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_samples_are_the_same_at_any_world_size(prepared, layout, world_size):
    options = {"layout": layout, "global_batch_size": 12, "seed": 3, "collate": list}
    whole = Loader([(prepared, 1.0)], **options)
    parts = [
        Loader([(prepared, 1.0)], **options, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    seen = Counter()
    for step in range(whole.samples_per_epoch // 12 + 3):
        expected = [key(s) for s in whole.batch(step)]
        assert [key(s) for part in parts for s in part.batch(step)] == expected
        seen.update(str(content) for _, content in expected)
    assert len(seen) == whole.samples_per_epoch


def test_resume_goes_on_exactly_and_another_layout_is_refused(prepared):
    options = {"global_batch_size": 4, "seed": 3, "collate": list}
    first = Loader([(prepared, 1.0)], layout=FIT, **options)
    steps = 2 * first.samples_per_epoch // 4 + 3
    batches = [[key(s) for s in batch] for batch in islice(first, steps)]
    state = None
    for at in (0, 1, steps // 2, steps - 1):
        first.step = at
        state = json.loads(json.dumps(first.state_dict()))
        resumed = Loader([(prepared, 1.0)], layout=FIT, **options, rank=1, world_size=2)
        resumed.load_state_dict(state)
        rest = [[key(s) for s in batch] for batch in islice(resumed, steps - at)]
        assert rest == [batch[2:] for batch in batches[at:]]
    for change, name in [
        (
            FIT._replace(overhead=2),
            "the number of tokens that the objective adds to a text was 0, now 2",
        ),
        (FIT._replace(packing="padded"), "packing was 'best_fit', now 'padded'"),
        (
            FIT._replace(drops_eod=True),
            "whether the objective leaves out end-of-document tokens was False",
        ),
        (Layout("concat", 48), "packing was 'best_fit', now 'concat'"),
    ]:
        other = Loader([(prepared, 1.0)], layout=change, **options)
        with pytest.raises(UserError, match=f"cannot resume: {name}"):
            other.load_state_dict(state)


def test_states_from_before_packing_go_on_with_windows_alone(prepared):
    old = Loader([(prepared, 1.0)], seq_len=48).state_dict()
    for name in ("packing", "overhead", "drops_eod"):
        del old[name]
    Loader([(prepared, 1.0)], seq_len=48, document_boundaries=True).load_state_dict(old)
    with pytest.raises(UserError, match="packing was 'concat', now 'best_fit'"):
        Loader([(prepared, 1.0)], layout=FIT).load_state_dict(old)


def test_what_a_step_saw_is_named(prepared):
    loader = Loader([(prepared, 1.0)], layout=FIT, global_batch_size=4, seed=3, world_size=2)
    other = Loader([(prepared, 1.0)], layout=FIT, global_batch_size=4, seed=3)
    shards = loader.shards[0]
    for step in (0, 5):
        segments = [(s.index, part) for s in other.samples(step) for part in s.segments]
        seen = loader.documents(step)
        assert len(seen) == len(segments)
        for entry, (index, part) in zip(seen, segments, strict=True):
            assert (entry.sample, list(entry.documents)) == (index, [part.document])
            stream = shards.read(entry.tokens.start, len(entry.tokens))
            assert stream.tolist() == part.tokens.tolist()


def test_best_fit_batches_predict_every_token_once_and_isolate_every_segment(prepared):
    loader = Loader([(prepared, 1.0)], layout=FIT, global_batch_size=4, seed=3)
    shards = loader.shards[0]
    targets = Counter()
    for step in range(-(-loader.samples_per_epoch // 4)):
        batch, samples = loader.batch(step), loader.samples(step)
        assert set(batch) == {"input_ids", "targets", "cu_seqlens", "position_ids"}
        inputs, aims, positions, bounds = [], [], [], [0]
        for sample in samples:
            for part in sample.segments:
                tokens = part.tokens.tolist()
                before = shards.eod_id if part.previous is None else part.previous
                inputs += [before, *tokens[:-1]]
                aims += tokens
                positions += range(len(tokens))
                bounds.append(len(inputs))
            padding = -len(inputs) % 48
            inputs += [shards.eod_id] * padding
            aims += [IGNORED] * padding
            positions += range(padding)
            bounds += [len(inputs)] if padding else []
            if sample.index < loader.samples_per_epoch:
                targets.update(t for part in sample.segments for t in part.tokens.tolist())
        assert batch["input_ids"].flatten().tolist() == inputs
        assert batch["targets"].flatten().tolist() == aims
        assert batch["position_ids"].flatten().tolist() == positions
        assert batch["cu_seqlens"].tolist() == bounds
        assert batch["cu_seqlens"].dtype == torch.int32
    assert targets == Counter(shards.read(0, shards.tokens).tolist())


def test_padded_batches_have_one_piece_a_row_and_a_mask(prepared):
    layout = Layout("padded", 48)
    loader = Loader([(prepared, 1.0)], layout=layout, global_batch_size=4, seed=3)
    batch, samples = loader.batch(2), loader.samples(2)
    assert set(batch) == {"input_ids", "targets", "attention_mask"}
    for row, sample in enumerate(samples):
        (part,) = sample.segments
        count = len(part.tokens)
        assert batch["attention_mask"][row].tolist() == [1] * count + [0] * (48 - count)
        assert batch["targets"][row, :count].tolist() == part.tokens.tolist()
        assert batch["targets"][row, count:].tolist() == [IGNORED] * (48 - count)
        assert batch["input_ids"][row, 1:count].tolist() == part.tokens[:-1].tolist()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_holds_everything_once_in_one_order(prepared, layout, world_size):
    shards = Shards(prepared, "valid")
    per_rank = [
        list(
            validation_batches(
                shards,
                layout=layout,
                collate=list,
                batch_size=2,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    rounds = range(len(per_rank[0]))
    samples = [s for number in rounds for rank in per_rank for s in rank[number]]
    real = [s for s in samples if s.index is not None]
    assert [s.index for s in real] == list(range(len(real)))
    assert all(s.segments == () for s in samples[len(real) :])
    tokens = Counter(t for s in real for part in s.segments for t in part.tokens.tolist())
    assert tokens == Counter(t for d in expected_documents(shards, layout) for t in d)
    few = list(
        validation_batches(shards, layout=layout, collate=list, batch_size=4, max_sequences=3)
    )
    assert [key(s) for s in few[0][:3]] == [key(s) for s in real[:3]]
    assert len(few) == 1
    assert few[0][3].index is None


def test_epochs_differ_where_all_is_one_chunk(prepared, monkeypatch):
    monkeypatch.undo()
    loader = Loader([(prepared, 1.0)], layout=FIT, global_batch_size=1)
    orders = [
        [[part.document for part in s.segments] for s in epoch_samples(loader, epoch)]
        for epoch in range(2)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_first_validation_rows_are_like_any_others(prepared, monkeypatch):
    """Best-fit-decreasing makes the rows with the longest documents first."""
    monkeypatch.undo()
    shards = Shards(prepared)
    first = next(validation_batches(shards, split="train", layout=FIT, collate=list, batch_size=30))
    everything = Loader([(shards, 1.0)], layout=FIT, global_batch_size=1)
    means = [
        np.mean([len(part.tokens) for s in samples for part in s.segments])
        for samples in (first, epoch_samples(everything))
    ]
    assert means[0] == pytest.approx(means[1], rel=0.3)


@pytest.mark.parametrize(
    ("layout", "error"),
    [
        (Layout("best_fit", 3, overhead=3), UserError),
        (Layout("best_fit", 16, lookahead=1), ValueError),
        (Layout("concat", 16, drops_eod=True), ValueError),
        (Layout("concat", 16), ValueError),  # the default collate needs the token after
        (Layout("padded", 16, overhead=2), ValueError),  # and adds nothing
        (Layout("sorted", 16), ValueError),
    ],
    ids=str,
)
def test_layouts_that_cannot_be_are_refused(prepared, layout, error):
    with pytest.raises(error):
        Loader([(prepared, 1.0)], layout=layout)


def test_an_epoch_of_real_poems_leaves_little_padding(tmp_path, run, monkeypatch):
    from tests.data_prep.test_pipeline import ROOT

    path = ROOT.parent / "shared/data/corpora/zh-tang-poems.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared/data is not there")
    monkeypatch.undo()
    char = {"tokenizer__train__kind": "char", "tokenizer__train__vocab_size": None}
    run(path, work_unit_bytes=32 << 20, **char)
    loader = Loader([(tmp_path / "out", 1.0)], layout=Layout("best_fit", 512))
    assert loader.packing_report().utilisation > 0.97
