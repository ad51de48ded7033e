from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import prepare_corpus
from tests.faults.harness import ForkServer, fork_server
from tests.faults.runs import Runs


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with fork_server(tmp_path_factory.mktemp("outputs")) as running:
        yield running


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def runs(server: ForkServer, corpus: Path, tmp_path: Path) -> Runs:
    return Runs(server, corpus, tmp_path)


@pytest.fixture(scope="module")
def finished(server: ForkServer, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Twelve steps of two ranks without a fault, in the run `calm`; to be copied, not changed."""
    runs = Runs(server, corpus, tmp_path_factory.mktemp("finished"))
    runs.finish(runs.config("calm"))
    return runs
