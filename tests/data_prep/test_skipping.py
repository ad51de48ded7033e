"""Windows of data steps that are left out, held against a plain enumeration."""

import json
import random
from itertools import islice

import pytest
import torch

from data_prep import Loader, Shards
from data_prep.naming import name_documents
from data_prep.samples import Seen
from data_prep.skipping import SkippedSteps
from runtime.errors import UserError

OPTIONS = {"seq_len": 16, "global_batch_size": 8, "seed": 3}


def ids(samples):
    return {"ids": torch.tensor([sample.index for sample in samples])}


def handed_out(loader, count):
    """The data steps of the next batches, by the samples in them."""
    return [int(batch["ids"][0]) // 8 for batch in islice(loader, count)]


def test_windows_are_what_an_enumeration_leaves() -> None:
    rng = random.Random(0)
    for _ in range(200):
        windows = [(a, a + rng.randrange(9)) for a in rng.choices(range(60), k=rng.randrange(6))]
        skipped = SkippedSteps(windows)
        kept = [n for n in range(200) if not any(a <= n < b for a, b in windows)]
        ends = [bound for window in skipped.windows for bound in window]
        assert ends == sorted(set(ends)), "sorted, not empty, and none touches another"
        for step in range(100):
            assert skipped.next_kept(step) == min(n for n in kept if n >= step)
        assert SkippedSteps.from_json(json.loads(json.dumps(skipped.to_json()))).windows == (
            skipped.windows
        )


def test_a_long_run_takes_no_longer() -> None:
    skipped = SkippedSteps([(10**12, 2 * 10**12)])
    assert skipped.next_kept(10**12 + 5) == 2 * 10**12


def test_a_roll_back_leaves_the_window_out_and_a_resume_goes_on_exactly(prepared) -> None:
    loader = Loader([(prepared, 1.0)], **OPTIONS, collate=ids)
    older = loader.state_dict()
    assert handed_out(loader, 7) == list(range(7))
    loader.load_state_dict(older)
    loader.skip(5, 7)
    loader.skip(9, 12)
    expected = [0, 1, 2, 3, 4, 7, 8, 12, 13, 14]
    states = []
    for step in expected:
        assert loader.step == step
        states.append(json.loads(json.dumps(loader.state_dict())))
        assert handed_out(loader, 1) == [step]
    assert loader.skipped == ((5, 7), (9, 12))
    for position, state in enumerate(states):
        resumed = Loader([(prepared, 1.0)], **OPTIONS, collate=ids)
        resumed.load_state_dict(state)
        assert handed_out(resumed, len(expected) - position) == expected[position:]
    loader.load_state_dict(older)
    assert handed_out(loader, 7) == list(range(7)), "a state says all"


def test_what_was_handed_out_stays(prepared) -> None:
    loader = Loader([(prepared, 1.0)], **OPTIONS, collate=ids)
    handed_out(loader, 6)
    loader.skip(2, 8)
    assert loader.skipped == ((6, 8),)
    loader.skip(1, 3)
    assert loader.skipped == ((6, 8),)
    assert handed_out(loader, 2) == [8, 9]


def test_states_without_windows_load_and_others_are_refused(prepared) -> None:
    loader = Loader([(prepared, 1.0)], **OPTIONS)
    old = loader.state_dict()
    del old["skipped"]
    loader.skip(0, 4)
    loader.load_state_dict(old)
    assert (loader.step, loader.skipped) == (0, ())
    for bad in (7, [[1]], [[3, 2]], [["a", "b"]], [[0, 1.5]], [[True, 2]], [[-1, 2]], {"a": 1}):
        with pytest.raises(UserError, match="skipped windows are"):
            loader.load_state_dict({**old, "skipped": bad})


def test_documents_of_a_step_are_named_in_few_words(prepared) -> None:
    loader = Loader([(prepared, 1.0)], **OPTIONS)
    for step in (0, 5):
        seen = loader.documents(step)
        (named,) = name_documents(loader.shards, seen, most=1000)
        assert json.loads(json.dumps(named)) == named
        assert (named["source"], named["split"]) == (str(prepared), "train")
        listed = [n for first, last in named["documents"] for n in range(first, last + 1)]
        assert listed == sorted({n for one in seen for n in one.documents})
        assert named["count"] == len(listed)
        assert "ranges" not in named
        (short,) = name_documents(loader.shards, seen, most=2)
        assert short["documents"] == named["documents"][:2]
        assert (short["count"], short["ranges"]) == (len(listed), len(named["documents"]))


def test_documents_of_several_sources_are_named_apart(prepared) -> None:
    sources = [Shards(prepared), Shards(prepared, "valid"), Shards(prepared)]
    parts = [(0, range(7, 9)), (1, range(3, 4)), (0, range(9, 10)), (0, range(2, 3)), (1, range(0))]
    seen = [Seen(source, documents, range(1)) for source, documents in parts]
    named = name_documents(sources, seen)
    assert [(n["split"], n["documents"], n["count"]) for n in named] == [
        ("train", [[2, 2], [7, 9]], 4),
        ("valid", [[3, 3]], 1),
    ]
