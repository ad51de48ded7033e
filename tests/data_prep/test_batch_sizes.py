"""A batch that grows: its arithmetic, and that the order of samples stays what it was."""

import json
from itertools import chain, islice

import pytest
import torch

from data_prep import Loader
from data_prep.batch_sizes import BatchSizes, rises
from data_prep.run_order import write_order
from data_prep.which import main
from runtime.errors import UserError

RAMP = ((3, 4), (5, 8), (9, 12))
OPTIONS = {"seq_len": 16, "global_batch_size": 16, "seed": 3, "ramp": RAMP}


@pytest.mark.parametrize("ramp", [(), RAMP, ((1, 2),)])
def test_the_arithmetic_is_that_of_counting(ramp):
    sizes, counted = BatchSizes(16, ramp), 0
    for step in range(20):
        assert sizes.first(step) == counted
        assert sizes.steps(counted) == step
        assert sizes.steps(counted - 1 if counted else 0) == max(step - 1, 0)
        counted += sizes.at(step)
    expected = [4] * 3 + [8] * 2 + [12] * 4 + [16]
    assert [BatchSizes(16, RAMP).at(step) for step in range(10)] == expected


def test_what_rises():
    assert rises(BatchSizes(16, RAMP))
    assert rises(BatchSizes(16))
    for ramp in (((3, 16),), ((3, 4), (3, 8)), ((3, 8), (5, 4)), ((0, 4),), ((3, 20),)):
        assert not rises(BatchSizes(16, ramp)), ramp


def rows_of(loaders, steps):
    """The rows of each step, those of all ranks one after the other."""
    for _ in range(steps):
        yield torch.cat([next(loader)["input_ids"] for loader in loaders])


def ranks_of(prepared, world_size, **options):
    return [
        Loader([(prepared, 1.0)], **{**OPTIONS, **options}, rank=r, world_size=world_size)
        for r in range(world_size)
    ]


def test_the_order_is_that_of_any_batch_and_world_size(prepared):
    grown = list(rows_of(ranks_of(prepared, 1), 30))
    assert [len(rows) for rows in grown[:10]] == [4] * 3 + [8] * 2 + [12] * 4 + [16]
    one_by_one = ranks_of(prepared, 1, global_batch_size=1, ramp=())[0]
    stream = [next(one_by_one)["input_ids"][0] for _ in range(sum(map(len, grown)))]
    assert torch.equal(torch.cat(grown), torch.stack(stream))
    for world_size in (2, 4):
        found = list(rows_of(ranks_of(prepared, world_size), 30))
        assert all(torch.equal(a, b) for a, b in zip(grown, found, strict=True))
    with_workers = ranks_of(prepared, 1, workers=1)
    found = list(rows_of(with_workers, 12))
    with_workers[0].close()
    assert all(torch.equal(a, b) for a, b in zip(grown, found, strict=False))


def test_a_state_goes_on_in_the_midst_of_a_ramp(prepared):
    loader = ranks_of(prepared, 1)[0]
    batches = list(islice(loader, 14))
    for at in range(12):
        saved = ranks_of(prepared, 1)[0]
        list(islice(saved, at))
        state = json.loads(json.dumps(saved.state_dict()))
        resumed = ranks_of(prepared, 2)
        for one in resumed:
            one.load_state_dict(state)
        rest = rows_of(resumed, 14 - at)
        for a, b in zip(rest, batches[at:], strict=True):
            assert torch.equal(a, b["input_ids"])
    with pytest.raises(UserError, match=r"cannot resume: batch\.ramp was \[\[3, 4\], .*now \[\];"):
        ranks_of(prepared, 1, ramp=())[0].load_state_dict(state)
    plain = ranks_of(prepared, 1, ramp=())[0]
    old = plain.state_dict()
    del old["ramp"]  # of a version before there was one
    plain.load_state_dict(old)


def test_steps_left_out_are_those_of_the_data(prepared):
    loader, whole = ranks_of(prepared, 1)[0], list(rows_of(ranks_of(prepared, 1), 12))
    loader.skip(2, 6)
    found = list(rows_of([loader], 6))
    assert [len(rows) for rows in found] == [4, 4, 12, 12, 12, 16]
    kept = [*whole[:2], *whole[6:10]]
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))
    assert loader.tokens[0] == sum(len(rows) for rows in found) * 16


def test_limits_and_stages_count_the_samples_that_were_taken(prepared):
    options = {**OPTIONS, "max_repetition": [1.0, 1.0], "stages": [(6, [0.0, 1.0])]}
    loader = Loader([(prepared, 1.0), (prepared, 0.0)], **options)
    first = loader.order.sizes.first
    stages = [stage.first for stage in loader.order.curriculum.stages]
    assert stages == [0, first(6)] == [0, 40]
    assert loader.end is not None
    last = loader.order.curriculum.end
    assert first(loader.end) <= last < first(loader.end + 1)
    sources = [s.source for step in range(8) for s in loader.documents(step)]
    counts = [len({s.sample for s in loader.documents(step)}) for step in range(8)]
    assert counts == [4, 4, 4, 8, 8, 12, 12, 12]
    assert set(sources) == {0, 1}


def test_the_documents_of_a_step_are_told(prepared, tmp_path, capsys):
    loader = ranks_of(prepared, 1)[0]
    write_order(tmp_path, loader.planned())
    taken = list(chain.from_iterable(range(first, first + n) for first, n in [(20, 8)]))
    assert main([str(tmp_path), "--step", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted({entry["sample"] for entry in found["documents"]}) == taken
    assert found["sources"][0]["tokens"] == 28 * 16


def test_a_size_that_ranks_cannot_share_is_refused(prepared):
    with pytest.raises(UserError, match=r"global_batch_size=6 .*cannot be shared by 4 ranks"):
        ranks_of(prepared, 4, ramp=((3, 6),))


def test_no_more_is_looked_up_ahead_than_without_a_ramp(prepared):
    loader = ranks_of(prepared, 1, global_batch_size=1024, ramp=((4, 1),))[0]
    loader.samples(0)
    ahead = [len(rows) for rows in loader._located.values()]
    assert ahead[:5] == [1, 1, 1, 1, 1024]
    assert 2048 <= sum(ahead) <= 2048 + 1024
