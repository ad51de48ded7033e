"""Stages, limits and resumes with another mixture: exact to the sample and to the token."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from data_prep import Loader
from data_prep.curriculum import Curriculum, Stage, carry_on
from data_prep.mixture import apportion
from data_prep.permutation import make_key, permute, unpermute
from data_prep.samples import Layout
from runtime.errors import UserError
from tests.data_prep.samples import make_texts, write_jsonl

LAYOUTS = {
    "concat": Layout("concat", 32, lookahead=1),
    "best_fit": Layout("best_fit", 64),
    "padded": Layout("padded", 64, overhead=2, drops_eod=True),
}
NONE = (None, None)


def stage(first, weights, limits=NONE):
    return Stage(first, tuple(apportion(weights)), tuple(limits))


def test_every_source_counts_up_through_stages_and_limits():
    stages = [stage(0, [0.7, 0.3], (90_000, None)), stage(70_001, [1, 3], (90_000, None))]
    found = Curriculum(stages)
    samples = np.arange(400_000)
    sources, own = found.locate(samples)
    for source in range(2):
        mine = own[sources == source]
        assert np.array_equal(mine, np.arange(len(mine))), "none twice, none left out"
    assert (sources == 0).sum() == 90_000
    early, late = sources[:70_001], sources[70_001:150_000]
    assert abs((early == 0).mean() - 0.7) < 1e-4
    assert abs((late == 0).mean() - 0.25) < 1e-4
    used_up = int(np.flatnonzero(sources == 0)[-1])
    assert np.all(sources[used_up + 1 :] == 1)
    for end in (0, 1, 70_000, 70_001, 70_002, used_up, used_up + 1, 399_999):
        assert found.consumed(end) == np.bincount(sources[:end], minlength=2).tolist()
    assert found.end is None


def test_the_share_of_a_used_up_source_goes_to_the_others_by_their_weights():
    found = Curriculum([stage(0, [0.5, 0.3, 0.2], (1000, None, None))])
    sources, _ = found.locate(np.arange(200_000))
    after = sources[int(np.flatnonzero(sources == 0)[-1]) + 1 :]
    assert abs((after == 1).mean() - 0.6) < 1e-4


def test_where_all_are_used_up_is_the_end():
    found = Curriculum([stage(0, [0.9, 0.1], (900, 300))])
    assert found.end == 1200
    assert found.consumed(5000) == [900, 300]


def test_a_plan_that_wants_what_held_changes_nothing():
    begun, later = [stage(0, [1, 1]), stage(500, [1, 3])], stage(9000, [3, 1])
    assert carry_on(begun, [stage(0, [1, 3]), later], 700) == [*begun, later]
    changed = carry_on(begun, [stage(0, [1, 9]), later], 700)
    assert changed == [*begun, stage(700, [1, 9]), later]
    assert carry_on(begun, [stage(0, [1, 9])], 500) == [begun[0], stage(500, [1, 9])]


@pytest.mark.parametrize("size", [1, 2, 5, 1000, 4097])
def test_the_inverse_of_the_permutation(size):
    key = make_key(1, 2, size)
    assert np.array_equal(unpermute(permute(np.arange(size), size, key), size, key), range(size))


@pytest.fixture
def two(run, prepared, tmp_path):
    """Two sources of one tokenizer: the second's documents are much shorter."""
    texts = [text[:25] for text in make_texts(200, seed=9)]
    tokenizer = {"tokenizer__path": str(prepared)}
    run(write_jsonl(tmp_path / "b.jsonl", texts), "b", **tokenizer)
    return [prepared, tmp_path / "b"]


def make(paths, way="concat", weights=(0.7, 0.3), **options):
    sources = list(zip(paths, weights, strict=True))
    settings = {"layout": LAYOUTS[way], "global_batch_size": 8, "seed": 3, "collate": list}
    return Loader(sources, **{**settings, **options})


def drawn(loader, first, stop):
    """(source, its tokens' start) of every segment."""
    return [
        (seen.source, seen.tokens.start, len(seen.tokens))
        for step in range(first, stop)
        for seen in loader.documents(step)
    ]


@pytest.mark.parametrize("way", LAYOUTS)
def test_weights_are_shares_of_the_tokens_and_accounts_are_exact(two, way):
    loader = make(two, way)
    loader.step = 150
    loader.skip(150, 153)
    tokens = Counter()
    seen = drawn(loader, 0, 150) + drawn(loader, 153, 201)
    for source, _, count in seen:
        tokens[source] += count
    loader.step = 201
    assert loader.tokens == [tokens[0], tokens[1]]
    # Over whole epochs of samples of all lengths; documents are of 5 to 64 tokens.
    assert abs(tokens[0] / tokens.total() - 0.7) < 0.02


@pytest.mark.parametrize("way", LAYOUTS)
def test_other_weights_at_a_resume_go_on_exactly(two, way):
    first = make(two, way)
    first.step = 40
    taken = first.order.curriculum.consumed(40 * 8)
    state = json.loads(json.dumps(first.state_dict()))
    again = make(two, way, weights=(0.2, 0.8))
    told = again.load_state_dict(state)
    assert "from data step 40 on" in told
    assert "20.00 % of the tokens (was 70.00 %)" in told
    assert drawn(again, 0, 40) == drawn(first, 0, 40), "what was is as it was"
    sources, own = again.order.curriculum.locate(np.arange(320, 400))
    for source in range(2):
        mine = own[sources == source]
        assert mine.tolist() == list(range(taken[source], taken[source] + len(mine)))
    # Resumed once more with the same weights it goes on as if it had not stopped.
    again.step = 47
    third = make(two, way, weights=(0.2, 0.8))
    assert third.load_state_dict(json.loads(json.dumps(again.state_dict()))) is None
    assert drawn(third, 40, 70) == drawn(again, 40, 70)
    assert len(third.state_dict()["stages"]) == 2


def test_stages_hold_wherever_a_run_stops(two):
    options = {"stages": [(20, (0.1, 0.9))]}
    whole = make(two, **options)
    expected = drawn(whole, 0, 40)
    shares = Counter(source for source, _, _ in drawn(whole, 20, 40))
    assert shares[1] > 120
    for at in (19, 20, 21):
        stopped = make(two, **options)
        stopped.step = at
        resumed = make(two, **options)
        assert resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict()))) is None
        assert drawn(resumed, 0, 40) == expected


def test_a_source_may_be_added_but_not_exchanged(two):
    alone = make(two[:1], weights=(1,))
    alone.step = 10
    both = make(two)
    assert "was 0.00 %" in both.load_state_dict(alone.state_dict())
    assert drawn(both, 0, 10) == drawn(alone, 0, 10)
    assert {source for source, _, _ in drawn(both, 10, 20)} == {0, 1}
    with pytest.raises(UserError, match="the data was"):
        make(two[::-1]).load_state_dict(alone.state_dict())


@pytest.mark.parametrize("way", LAYOUTS)
def test_no_source_is_passed_more_often_than_it_may(two, way):
    loader = make(two, way, max_repetition=(1, 2))
    rows = [seen[:2] for seen in drawn(loader, 0, loader.end)]
    a, b = (cutting.size for cutting in loader.order.cuttings)
    assert loader.end == (a + 2 * b) // 8
    counts = Counter(rows)
    assert {counts[row] for row in counts if row[0] == 0} == {1}
    assert {counts[row] for row in counts if row[0] == 1} <= {1, 2}
    loader.step = loader.end - 1
    next(loader)
    with pytest.raises(UserError, match=rf"used up: .* after {loader.end} data steps"):
        next(loader)


def test_states_of_the_first_schema_go_on(two):
    old = {"step": 5, "seed": 3, "seq_len": 32, "global_batch_size": 8, "split": "train"}
    loader = make(two[:1], weights=(1,))
    prints = loader.state_dict()["fingerprints"]
    old |= {"schema": 1, "weights": [2.0], "fingerprints": prints}
    assert loader.load_state_dict(old) is None
    assert loader.step == 5
    both = make(two)
    both.load_state_dict(
        {
            **old,
            "weights": [0.7, 0.3],
            "fingerprints": [shards.fingerprint for shards in both.shards],
        }
    )
    assert both.state_dict()["stages"][0][1] == apportion([0.7, 0.3])
    with pytest.raises(UserError, match="stages are"):
        both.load_state_dict({**both.state_dict(), "stages": [[0, [1.5], []]]})


def test_an_epoch_of_a_mixture_holds_each_sample_once_on_any_number_of_ranks(two):
    whole = make(two, weights=(1, 2), stages=[(9, (3, 1))], global_batch_size=24)
    steps = 40
    expected = [[s.index for s in batch] for batch in islice(whole, steps)]
    for world_size in (2, 3, 4, 8):
        ranks = [
            make(
                two,
                weights=(1, 2),
                stages=[(9, (3, 1))],
                global_batch_size=24,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        for want in expected:
            assert [s.index for rank in ranks for s in next(rank)] == want
