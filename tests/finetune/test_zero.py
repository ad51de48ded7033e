"""Runs under DeepSpeed's ZeRO against runs of plain replicas."""

import pytest
import torch
from accelerate.state import AcceleratorState

from finetune.parallel.config import Parallel, check_parallel
from model import load_pretrained
from tests.finetune.test_train import same, weights
from tests.finetune.toys import (
    animal_texts,
    byte_tokenizer,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    write_jsonl,
)
from tests.processes import run

# A step is 6 micro-batches of 3; the last of an epoch has 5 examples, in micro-batches of 3 + 2.
SHAPE = {
    "batch__global_batch_size": 18,
    "batch__micro_batch_size": 3,
    "steps": 8,
    "epochs": None,
    "schedule__kind": "constant",
    "evaluate__every_steps": 4,
}


def forget_groups():
    """DeepSpeed keeps process groups in globals; each run here makes one anew, and ends it."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    comm.cdb = None
    groups._WORLD_GROUP = None
    groups.mesh_device = None


def trained(tmp_path, name, *overrides, stage="none", **changes):
    """A run of that name under a stage; on the same name it is gone on with."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if stage != "none":
        forget_groups()
    settings = {**SHAPE, "parallel__zero_stage": stage, "run__dir": str(tmp_path / name), **changes}
    assert finetune(config_file(tmp_path, **settings), *overrides) == 0
    return tmp_path / name


@pytest.fixture(autouse=True)
def data(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", animal_texts(77, 1))
    for name, seed in (("dev", 2), ("test", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", animal_texts(19, seed))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_trains_as_replicas_do(tmp_path, stage):
    plain = trained(tmp_path, "plain")
    zero = trained(tmp_path, "zero", stage=stage)
    for key in ("loss", "valid_loss", "grad_norm"):
        assert records(zero, key) == pytest.approx(records(plain, key), abs=1e-6, rel=1e-5)
    assert len(records(zero, "loss")) == 8
    assert same(weights(zero), weights(plain), tolerance=1e-4)
    assert read_report(zero)["confusion_matrix"] == read_report(plain)["confusion_matrix"]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_under_zero_train_as_one_process(tmp_path, stage):
    plain = trained(tmp_path, "plain")
    settings = {**SHAPE, "parallel__zero_stage": stage, "run__dir": str(tmp_path / "zero")}
    status, output = run(["-m", "finetune", str(config_file(tmp_path, **settings))], ranks=2)
    assert status == 0, output
    for key in ("loss", "valid_loss"):
        assert records(tmp_path / "zero", key) == pytest.approx(records(plain, key), abs=1e-6)
    assert same(weights(tmp_path / "zero"), weights(plain), tolerance=1e-4)


@pytest.mark.parametrize("chain", [("none", 3, "none"), (2, "none", 1)])
def test_a_run_goes_on_under_another_engine(tmp_path, chain):
    straight = trained(tmp_path, "straight")
    for stage, steps in zip(chain, (3, 6, 8), strict=True):
        chained = trained(tmp_path, "chained", stage=stage, steps=steps)
    assert records(chained, "loss") == pytest.approx(records(straight, "loss"), abs=1e-6)
    # Not the best models: a run that is cut is also scored where it was cut.
    last = "checkpoints/step_00000008"
    assert same(weights(chained, last), weights(straight, last), tolerance=1e-4)


def test_bf16_goes_on_from_its_masters(tmp_path):
    straight = trained(tmp_path, "straight", stage=2, precision="bf16")
    for steps in (4, 8):
        resumed = trained(tmp_path, "resumed", stage=2, precision="bf16", steps=steps)
    assert records(resumed, "loss") == records(straight, "loss")
    assert same(weights(resumed), weights(straight))
    exact = trained(tmp_path, "fp32")
    assert records(straight, "loss") == pytest.approx(records(exact, "loss"), abs=2e-2)


def test_the_masters_of_bf16_start_from_the_weights_that_were_loaded(tmp_path):
    run_dir = trained(tmp_path, "zero", stage=1, precision="bf16", steps=1, optim__lr=1e-30)
    from runtime.checkpoint.reader import TrainingState

    state = TrainingState(run_dir / "checkpoints" / "step_00000001")
    base = dict(load_pretrained(tmp_path / "base").named_parameters())
    name = "trunk.token_embedding.weight"
    stored = state.read(name, "master", 0, base[name].numel())
    assert torch.equal(stored, base[name].detach().flatten())
    assert not torch.equal(stored, stored.bfloat16().float())  # which the bf16 weights are not


@pytest.mark.parametrize("stage", [2, 3])
def test_rates_of_the_layers_and_frozen_ones_hold_under_zero(tmp_path, stage):
    changes = {"transfer__strategy": "partial", "transfer__freeze_layers": 1}
    changes["transfer__layer_decay"] = 0.5
    plain = trained(tmp_path, "plain", **changes)
    zero = trained(tmp_path, "zero", stage=stage, **changes)
    assert records(zero, "loss") == pytest.approx(records(plain, "loss"), abs=1e-6)
    before = dict(load_pretrained(tmp_path / "base").named_parameters())
    after = dict(load_pretrained(zero / "best", head="sequence").named_parameters())
    for name in before:
        is_kept = name.startswith(("trunk.token_embedding", "trunk.blocks.0."))
        if name.startswith("trunk."):
            assert torch.equal(before[name], after[name]) is is_kept, name


def test_recomputing_changes_no_result(tmp_path):
    plain = trained(tmp_path, "plain")
    again = trained(tmp_path, "again", parallel__activation_checkpointing="block")
    assert records(again, "loss") == pytest.approx(records(plain, "loss"), abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"zero_stage": 0}, "0 is computed wrongly in bf16"),
        ({"offload": "optimizer"}, "needs ZeRO"),
        ({"zero_stage": 2, "offload": "all"}, "all needs parallel.zero_stage: 3, got 2"),
    ],
)
def test_what_does_not_go_together_is_told(keys, told):
    (problem,) = check_parallel(Parallel(**keys), "bf16")
    assert told in problem.message
    assert list(check_parallel(Parallel(zero_stage=3, offload="all"), "bf16")) == []


def test_packed_instructions_under_zero(tmp_path):
    """In the last, smaller step of an epoch a rank goes through a batch that counts nothing."""
    rows = [{"prompt": f"{n}", "response": "w" * (1 + n % 4)} for n in range(11)]
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    checkpoint(tmp_path / "base", byte_tokenizer())
    sizes = {"batch__global_batch_size": 8, "batch__micro_batch_size": 2}
    changes = {"task__kind": "instruct", "task__max_length": 64, "steps": 4, **sizes}
    plain = trained(tmp_path, "plain", **changes)
    zero = trained(tmp_path, "zero", stage=2, **changes)
    assert records(zero, "loss") == pytest.approx(records(plain, "loss"), abs=1e-6)
