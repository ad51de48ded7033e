"""B4: which samples a step sees, over ranks, workers, restarts and windows left out."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from data_prep.config import DataPrepConfig
from data_prep.loader import Loader
from data_prep.pipeline import prepare
from data_prep.samples import Layout, Sample
from runtime.config import load
from runtime.errors import UserError
from tests.corpus import prepare_corpus

WORLD_SIZES = (1, 2, 3, 4, 8)
BATCH, SEED, STEPS = 24, 5, 90
LAYOUTS = {
    "concat": Layout("concat", 48, lookahead=1),
    "documents": Layout("documents", 48, lookahead=1),
    "best_fit": Layout("best_fit", 48),
    "padded": Layout("padded", 48, overhead=2, drops_eod=True),
}
WAYS = [*LAYOUTS, "mixture of concat", "mixture of best_fit"]


class Stretch(NamedTuple):
    """From one start to the next."""

    world_size: int
    workers: int
    until: int  # batches handed out since the run began


class Skip(NamedTuple):
    """Before a batch, leave data steps out."""

    at: int
    first: int
    stop: int


def identify(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Each sample's number, and 63 bits of a hash of its text and of where that is from."""
    rows = []
    for sample in samples:
        found = hashlib.sha256()
        for segment in sample.segments:
            found.update(f"{segment.source} {segment.document} {segment.previous} ".encode())
            found.update(segment.tokens.tobytes())
        rows.append([sample.index, int.from_bytes(found.digest()[:8], "big") >> 1])
    return {"samples": torch.tensor(rows, dtype=torch.int64)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two directories of different sizes, of one tokenizer."""
    directory = tmp_path_factory.mktemp("sources")
    first = prepare_corpus(directory)
    (directory / "other.txt").write_text(
        "\n\n".join(f"the cat sees {n} {'mice ' * (n % 40)}" for n in range(300))
    )
    settings = {
        "input": {"paths": [str(directory / "other.txt")], "document": "paragraph"},
        "output": str(directory / "other"),
        "tokenizer": {"path": str(first)},
        "workers": 1,
    }
    (directory / "other.yaml").write_text(yaml.safe_dump(settings))
    prepare(load(DataPrepConfig, directory / "other.yaml"))
    return [first, directory / "other"]


@pytest.fixture
def make(sources: list[Path]) -> Callable[..., Loader]:
    def made(way: str, **ranks: int) -> Loader:
        mixed = way.startswith("mixture of ")
        return Loader(
            [(sources[0], 0.7), (sources[1], 0.3)] if mixed else [(sources[0], 1.0)],
            global_batch_size=BATCH,
            seed=SEED,
            layout=LAYOUTS[way.removeprefix("mixture of ")],
            collate=identify,
            **ranks,
        )

    return made


def order(make: Any, way: str, stretches: list[Stretch], skips: list[Skip]) -> str:
    """sha256 of all samples of a run, in order; each stretch is resumed from the last one's state.

    The state goes through JSON, as in a checkpoint, and is the same on all ranks.
    """
    found, done, state = hashlib.sha256(), 0, None
    for world_size, workers, until in stretches:
        ranks = [
            make(way, rank=rank, world_size=world_size, workers=workers)
            for rank in range(world_size)
        ]
        for rank in ranks:
            iter(rank)
            if state is not None:
                rank.load_state_dict(json.loads(state))
        while done < until:
            for skip in skips:
                for rank in ranks if skip.at == done else ():
                    rank.skip(skip.first, skip.stop)
            for rank in ranks:
                found.update(next(rank)["samples"].numpy().tobytes())
            done += 1
        (state,) = {json.dumps(rank.state_dict()) for rank in ranks}
        for rank in ranks:
            rank.close()
    return found.hexdigest()


def expected(make: Any, way: str, steps: Sequence[int]) -> str:
    """The same of the data steps as they are asked for one by one."""
    found, loader = hashlib.sha256(), make(way)
    for step in steps:
        found.update(loader.batch(step)["samples"].numpy().tobytes())
    return found.hexdigest()


def kept(skips: Sequence[Skip]) -> list[int]:
    """Which data steps a run is made of, by trying each."""
    steps: list[int] = []
    out: set[int] = set()
    step = 0
    while len(steps) < STEPS:
        for skip in skips:
            if skip.at == len(steps):
                out |= set(range(skip.first, skip.stop))
        if step not in out:
            steps.append(step)
        step += 1
    return steps


def chances(seed: str) -> tuple[list[int], list[Skip]]:
    """Where to restart, and what to leave out: overlapping, adjacent, past and empty windows."""
    chance = random.Random(seed)
    restarts = sorted(chance.sample(range(1, STEPS), 5))
    skips = []
    for at in sorted(chance.sample(range(STEPS), 6)):
        first = at + chance.randrange(-3, 12)
        skips.append(Skip(at, max(first, 0), max(first, 0) + chance.randrange(7)))
    return restarts, skips


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_order_is_the_same_however_it_is_shared(make, way: str, skipping: bool) -> None:
    """Restarts at five random places; once on changing numbers of ranks."""
    restarts, skips = chances(way)
    skips = skips if skipping else []
    steps = kept(skips)
    assert (steps[-1] > STEPS - 1) is skipping
    whole = expected(make, way, steps)
    for world_size in WORLD_SIZES:
        ends = (*restarts, STEPS)
        assert order(make, way, [Stretch(world_size, 0, end) for end in ends], skips) == whole
    changing = [Stretch(size, 0, end) for size, end in zip((2, 8, 1, 3, 4, 2), ends, strict=True)]
    assert order(make, way, changing, skips) == whole
    assert expected(make, way, [steps[1], steps[0], *steps[2:]]) != whole


@pytest.mark.parametrize("way", ["mixture of best_fit"])
def test_the_order_is_the_same_with_workers(make, way: str) -> None:
    """Without a restart; from a state that other ranks saved, with none, and two workers."""
    _, skips = chances(way)
    whole = expected(make, way, kept(skips))
    assert order(make, way, [Stretch(1, 2, STEPS)], skips) == whole
    changing = [Stretch(2, 0, 31), Stretch(2, 2, 58), Stretch(1, 0, STEPS)]
    assert order(make, way, changing, skips) == whole


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", WAYS)
def test_the_order_is_the_same_with_workers_on_any_number_of_ranks(make, way: str) -> None:
    restarts, skips = chances(way)
    whole = expected(make, way, kept(skips))
    for world_size in WORLD_SIZES:
        workers = random.Random(world_size).sample([0, 2, 1], 3)
        ends = (restarts[1], restarts[3], STEPS)
        stretches = [Stretch(world_size, *pair) for pair in zip(workers, ends, strict=True)]
        assert order(make, way, stretches, skips) == whole


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_holds_every_sample_and_every_token_once(make, way: str) -> None:
    loader = make(way)
    sizes = [cutting.size for cutting in loader.order.cuttings]
    orders: list[list[list[int]]] = [[] for _ in sizes]  # of each source, token by token
    samples: list[list[tuple[int, ...]]] = [[] for _ in sizes]
    step = 0
    while min(len(found) / size for found, size in zip(samples, sizes, strict=True)) < 2:
        by_sample: dict[int, list[Any]] = {}
        for seen in loader.documents(step):
            by_sample.setdefault(seen.sample, []).append(seen)
        assert list(by_sample) == list(range(step * BATCH, (step + 1) * BATCH))
        for parts in by_sample.values():
            source = parts[0].source
            samples[source].append(tuple(part.tokens.start for part in parts))
            orders[source].append([token for part in parts for token in part.tokens])
        step += 1
    for source, size in enumerate(sizes):
        shards = loader.shards[source]
        every = Counter(range(shards.tokens))
        if loader.layout.drops_eod:
            every -= Counter(shards.token_range(n).stop - 1 for n in range(len(shards)))
        epochs = [slice(0, size), slice(size, 2 * size)]
        for epoch in epochs:
            assert Counter(token for row in orders[source][epoch] for token in row) == every
            assert len(set(samples[source][epoch])) == size
        assert samples[source][epochs[0]] != samples[source][epochs[1]], "shuffled anew"


def test_the_state_is_a_few_integers_and_names_its_data(make) -> None:
    loader = make("mixture of best_fit")
    loader.step = 10**15
    loader.skip(10**15 + 5, 10**15 + 9)
    state = loader.state_dict()
    assert len(json.dumps(state)) < 700
    assert [len(stage) for stage in state["stages"]] == [3], "the state must not grow with steps"
    assert state["step"] == 10**15
    assert state["skipped"] == [[10**15 + 5, 10**15 + 9]]
    for name, value in {
        "fingerprints": [state["fingerprints"][0], "0" * 64],
        "seed": 6,
        "packing": "padded",
    }.items():
        with pytest.raises(UserError, match=r"cannot resume: .* the order of "):
            loader.load_state_dict({**state, name: value})
