from collections.abc import Iterator

import pytest

from tests.corpus import prepare_corpus
from tests.faults.harness import ForkServer, fork_server
from tests.faults.runs import Runs


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with fork_server(tmp_path_factory.mktemp("outputs")) as running:
        yield running


@pytest.fixture(scope="session")
def runs(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished run of two steps on one rank, `good`: to be copied, not changed."""
    corpus = prepare_corpus(tmp_path_factory.mktemp("corpus"), documents=60)
    runs = Runs(server, corpus, tmp_path_factory.mktemp("runs"))
    config = runs.config("good", steps=2, schedule__kind="constant", schedule__warmup_steps=0)
    runs.finish(config, ranks=1)
    return runs
