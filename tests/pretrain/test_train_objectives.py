"""Whole runs of the objectives that are not plain next-token prediction."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.loader import validation_batches
from data_prep.shards import Shards
from model import load_pretrained
from pretrain.config import PretrainConfig
from pretrain.objectives import make_objective
from pretrain.objectives.draws import VALIDATION_SEED
from runtime.config import load
from runtime.records import read_metrics
from tests.pretrain.test_train import losses, train, wait_for_step
from tests.processes import run, start_ranks

Write = Callable[..., Path]
BERT = {
    "preset": None,
    "family": "bert",
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 16,
    "max_seq_len": 64,
}


@pytest.fixture
def write(write_config: Write, bert_corpus: Path, fim_corpus: Path) -> Write:
    """A config of a run of some objective, on the corpus that suits it."""

    def written(objective: str, **changes: object) -> Path:
        keys: dict[str, Any] = {"objective": objective, "data__seq_len": 48}
        if objective.startswith("masked"):
            keys |= {"model": dict(BERT), "data__train": str(bert_corpus)}
        elif objective == "fill_in_the_middle":
            keys["data__train"] = str(fim_corpus)
        return write_config(**{**keys, **changes})

    return written


def records(run_dir: Path) -> list[dict[str, Any]]:
    return read_metrics(run_dir / "metrics.jsonl")


@pytest.fixture(scope="module")
def cache() -> dict[str, Path]:
    return {}


@pytest.fixture
def masked(write: Write, tmp_path: Path, cache: dict[str, Path]) -> Path:
    """Twelve steps of masked_lm on whole words, with dropout and accumulation; trained once."""
    if not cache:
        keys = {"masking__unit": "word", "model__dropout": 0.1}
        status, output = train(write("masked_lm", **keys, run__dir=str(tmp_path / "first")))
        assert status == 0, output
        assert "masked_lm; fp32" in output
        assert "% of positions hold tokens; " in output
        cache["dir"] = (tmp_path / "first").rename(tmp_path.parent / "masked")
    return cache["dir"]


def test_a_masked_run_learns_and_records_what_it_should(masked: Path) -> None:
    steps = [r for r in records(masked) if "loss" in r]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3
    before = 0
    for record in steps:
        # best_fit rows of short documents: most positions hold a token, none is counted twice.
        seen, before = record["tokens_seen"] - before, record["tokens_seen"]
        assert record["utilisation"] == pytest.approx(seen / (8 * 48))
        assert 0.8 < record["utilisation"] <= 1.0
        assert record["predicted_tokens"] < 0.2 * seen
    scores = [r for r in records(masked) if "valid_loss" in r]
    assert [r["step"] for r in scores] == [6, 12]
    assert scores[1]["valid_loss"] < scores[0]["valid_loss"]
    # The masks are the same, so the share of the commonest hidden token is.
    assert scores[0]["valid_unigram_accuracy"] == scores[1]["valid_unigram_accuracy"] > 0.02
    assert 0 <= scores[1]["valid_accuracy"] <= 1
    assert "valid_pair_accuracy" not in scores[1]


def test_the_recorded_validation_is_that_of_the_saved_model(
    masked: Path, write: Write, bert_corpus: Path
) -> None:
    """The last record against the checkpoint, through transformers, row by row."""
    from transformers import AutoModelForMaskedLM

    path = masked / "checkpoints" / "step_00000012"
    theirs = AutoModelForMaskedLM.from_pretrained(path).eval()
    config = load(PretrainConfig, write("masked_lm", masking__unit="word"))
    valid = Shards(bert_corpus, "valid")
    objective = make_objective(config, [valid], VALIDATION_SEED)
    batches = validation_batches(
        valid, batch_size=1, max_sequences=24, layout=objective.layout, collate=objective.collate
    )
    total, count, right = 0.0, 0, 0
    for batch in batches:
        bounds = batch["cu_seqlens"].tolist()
        for begin, end in pairwise(bounds):
            targets = batch["targets"][0, begin:end]
            if (targets == -100).all():
                continue
            with torch.no_grad():
                logits = theirs(batch["input_ids"][:, begin:end]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            right += int((logits.argmax(-1) == targets).sum())
            count += int((targets != -100).sum())
    last = [r for r in records(masked) if "valid_loss" in r][-1]
    assert last["valid_loss"] == pytest.approx(total / count, rel=1e-5)
    assert last["valid_accuracy"] == pytest.approx(right / count)


def test_a_masked_run_that_was_killed_goes_on_to_the_same_numbers(
    masked: Path, write: Write, tmp_path: Path
) -> None:
    path = write("masked_lm", masking__unit="word", model__dropout=0.1)
    (process,) = start_ranks(["-m", "pretrain", str(path)])
    wait_for_step(tmp_path / "run", 5)
    process.kill()
    process.wait()
    status, output = train(path)
    assert status == 0, output
    assert losses(tmp_path / "run") == losses(masked)


@pytest.mark.parametrize("objective", ["masked_lm_nsp", "masked_lm_sop"])
def test_pairs_on_one_rank_and_on_two(write: Write, tmp_path: Path, objective: str) -> None:
    """Unequal numbers of predicted tokens on the ranks: still the same two means."""
    for name, ranks in (("one", 1), ("two", 2)):
        path = write(objective, steps=6, run__dir=str(tmp_path / name))
        status, output = train(path, "batch.micro_batch_size=2", ranks=ranks)
        assert status == 0, output
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert two == {step: pytest.approx(value, rel=1e-6) for step, value in one.items()}
    (score,) = [r for r in records(tmp_path / "one") if "valid_loss" in r]
    (other,) = [r for r in records(tmp_path / "two") if "valid_loss" in r]
    assert 0 <= score["valid_pair_accuracy"] <= 1
    # What always the same answer would get right, of pairs as the data decides them.
    assert 0.5 <= score["valid_pair_majority_accuracy"] < 1
    for name in (name for name in score if name.startswith("valid_")):
        assert other[name] == pytest.approx(score[name], rel=1e-6)
    steps = [r for r in records(tmp_path / "one") if "loss" in r]
    assert all(r["replaced_tokens"] >= 0 for r in steps)
    assert all(0 <= r["predicted_pairs"] <= 8 for r in steps)
    assert sum(r["predicted_pairs"] for r in steps) > 0
    assert sum(r["replaced_tokens"] for r in steps) > 0


@pytest.mark.parametrize(
    ("objective", "packing"),
    [
        ("masked_lm", "concat"),
        ("masked_lm", "padded"),
        ("causal_lm", "best_fit"),
        ("causal_lm", "padded"),
        ("prefix_lm", None),
        ("prefix_lm", "best_fit"),
        ("fill_in_the_middle", None),
    ],
)
def test_every_other_way_trains(
    write: Write, tmp_path: Path, objective: str, packing: str | None
) -> None:
    status, output = train(write(objective, steps=8, data__packing=packing))
    assert status == 0, output
    assert "documents cut" in output
    found = losses(tmp_path / "run")
    assert found[8] < found[1] - 0.1
    (score,) = [r for r in records(tmp_path / "run") if r.get("step") == 8 and "valid_loss" in r]
    assert ("valid_accuracy" in score) == objective.startswith("masked")
    load_pretrained(
        tmp_path / "run" / "checkpoints" / "step_00000008",
        head="masked_lm" if objective.startswith("masked") else "causal_lm",
    )


def test_another_packing_is_refused_on_resume(masked: Path, write: Write, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(masked, tmp_path / "run")
    path = write("masked_lm", masking__unit="word", model__dropout=0.1, steps=20)
    status, output = run(["-m", "pretrain", str(path), "data.packing=padded"])
    assert status == 2
    assert "cannot resume: packing was 'best_fit', now 'padded'" in output
    status, output = run(["-m", "pretrain", str(path), "objective=masked_lm_nsp"])
    assert status != 0
    assert "Traceback" not in output
