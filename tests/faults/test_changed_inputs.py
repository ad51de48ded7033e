"""B5: what changed between two stretches of a run is refused where it would change the run."""

import shutil
from pathlib import Path

import pytest

from tests.corpus import prepare_corpus
from tests.faults.runs import Runs, losses

REFUSED = 2


@pytest.fixture
def started(finished: Runs, runs: Runs) -> Runs:
    shutil.copytree(finished.path("calm"), runs.path("calm"))
    return runs


@pytest.fixture(scope="session")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other text in the same characters."""
    return prepare_corpus(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text through a tokenizer that knows more."""
    return prepare_corpus(
        tmp_path_factory.mktemp("tokenizer"), tokenizer={"kind": "bpe", "vocab_size": 300}
    )


def refusal(runs: Runs, **changes: object) -> str:
    """What the run says when it is started again with changes that it does not take."""
    before = losses(runs.path("calm"))
    run = runs.start(runs.config("calm", steps=20, **changes))
    assert run.wait() == [REFUSED] * 2, run.output()
    output = run.output()
    assert "Traceback" not in output
    assert losses(runs.path("calm")) == before
    return output


def test_other_data(started: Runs, other_corpus: Path) -> None:
    output = refusal(started, data__train=str(other_corpus))
    assert "the data was" in output
    assert "Restore it, or start a new run" in output


def test_another_tokenizer(started: Runs, other_tokenizer: Path) -> None:
    assert "model.vocab_size: " in refusal(started, data__train=str(other_tokenizer))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__d_model": 32}, "model.d_model: 16 → 32"),
        ({"model__n_layers": 3}, "model.n_layers: 2 → 3"),
        ({"model__n_kv_heads": 2}, "model.n_kv_heads: 1 → 2"),
        ({"data__seq_len": 32}, "was 16, now 32"),
        ({"batch__global_batch_size": 16}, "was 8, now 16"),
        ({"run__seed": 4}, "was 3, now 4"),
        ({"data__packing": "documents"}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_model_or_order(started: Runs, changes: dict, told: str | None) -> None:
    if told is None:  # the same rows in the same order: only attention differs
        started.finish(started.config("calm", steps=13, **changes))
        return
    assert told in refusal(started, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"log__every_steps": 2},
        {"log__tensorboard": True},
        {"checkpoint__every_steps": 3, "checkpoint__keep_last": 0},
        {"batch__micro_batch_size": 4},
        {"batch__micro_batch_size": None},
        {"health__hang_timeout_s": 99},
        {"data__verify": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_harmless_changes(started: Runs, changes: dict) -> None:
    output = started.finish(started.config("calm", steps=14, **changes))
    assert "step_00000012, step 12" in output
    for name, value in changes.items():
        assert f"changed: {name.replace('__', '.')} was" in output
        assert f"now {value}" in output
