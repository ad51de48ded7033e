"""The memory of a run, by hand and by its rules; against real runs: benchmarks/predictions.py."""

import math

import pytest
import torch

from launch.estimate.devices import DEVICES, Device
from launch.estimate.layout import Layout
from launch.estimate.memory import RunMemory, run_memory
from launch.estimate.moments import held, moments, resident
from launch.estimate.storage import Size, checkpoint_size
from model.flops import parameters
from model.hf.directory import ModelFiles
from model.hf.shards import Part
from model.hf.state import slots
from model.presets import preset

H100 = DEVICES["h100"]
CPU = H100._replace(name="cpu")
MODEL = preset("llama-1b")
SIZE = parameters(MODEL)
SMALL = preset("gpt2-124m", n_layers=8, d_model=640, n_heads=10, vocab_size=8192, max_seq_len=256)


def layout(**changes: object) -> Layout:
    values = {"n_ranks": 8, "micro_batch_size": 4, "accumulation_steps": 1, "seq_len": 2048}
    return Layout(**{**values, "zero_stage": 1, **changes})


def memory(device: Device = H100, **changes: object) -> RunMemory:
    return run_memory(MODEL, layout(**changes), device)


def test_states_by_stage() -> None:
    """16-bit weights, masters and moments (12 bytes), divided as the ZeRO paper says."""
    for stage, weights, states in ((1, 1, 8), (2, 1, 8), (3, 8, 8)):
        found = memory(zero_stage=stage)
        assert found.weights == pytest.approx(2 * SIZE / weights)
        assert found.optimizer >= 12 * SIZE / states
    plain = memory(zero_stage=0, precision="fp32")
    assert (plain.weights, plain.optimizer) == (4 * SIZE, 8 * SIZE)


def test_zero_3_in_fp32_has_no_second_copy_of_the_weights() -> None:
    cases = {stage: layout(zero_stage=stage, precision="fp32", n_ranks=1) for stage in (2, 3)}
    sums = {}
    for stage, one in cases.items():
        found = held(MODEL, one, is_cpu=True, head=None, predicted_fraction=1.0, optimizer="adamw")
        device, _ = resident(found, one)
        sums[stage] = sum(t.size for t in device if t.part == "optimizer")
    assert sums == {2: 12 * SIZE, 3: 8 * SIZE}


def test_offload_moves_the_optimizer_to_the_host() -> None:
    here, there = memory(zero_stage=2), memory(zero_stage=2, offload="optimizer")
    assert there.optimizer < 1e9 < here.optimizer
    assert there.host - here.host == pytest.approx((12 + 4 + 2) * SIZE / 8)
    everything = memory(zero_stage=3, offload="all")
    assert everything.weights == 0
    stored = memory(zero_stage=3, offload="all", offload_to="nvme")
    assert everything.host - stored.host == pytest.approx(
        (12 + 4 + 2 + 2 + 2 - 2) * SIZE / 8 - 4 * 4 * min(SIZE / 8, 1e8)
    )


LARGE = preset("llama-2-7b")


def large(**changes: object) -> RunMemory:
    return run_memory(
        LARGE, layout(n_ranks=1, micro_batch_size=1, recompute="block", **changes), H100
    )


def test_a_model_is_moved_to_the_device_in_fp32_also_with_offload() -> None:
    """Stage 2 with the optimizer on the host peaks at its start; masters are made there."""
    found = large(zero_stage=2, offload="optimizer")
    assert (found.moment, found.optimizer) == ("start", 0.0)
    assert found.weights == pytest.approx(4 * parameters(LARGE))


def test_zero_3_holds_gradients_of_a_bucket_not_of_the_whole_model() -> None:
    """A bucket's own gradients and this rank's part, freed as they go to the host."""
    found = large(zero_stage=3, offload="all")
    assert found.moment == "backward"
    assert found.gradients == pytest.approx(2 * 2 * 5e8)


def test_zero_3_updates_a_sub_group_at_a_time() -> None:
    one = layout(n_ranks=1, zero_stage=3)
    found = held(LARGE, one, is_cpu=False, head=None, predicted_fraction=1.0, optimizer="adamw")
    in_fp32 = [t.size for t in moments(found, one)["update"] if t.kind == "fp32"]
    assert in_fp32 == [4e9]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("changes", "optimizer", "is_cpu", "is_fused", "stays"),
    [
        ({"compile": True}, "adamw", True, True, True),
        ({"compile": True, "n_ranks": 2}, "adamw", True, True, False),
        ({"compile": True}, "muon", True, False, True),
        ({"compile": True, "precision": "fp16"}, "adamw", False, False, None),
        ({"compile": True, "offload": "optimizer"}, "adamw", True, False, False),
        ({}, "adamw", True, False, True),
        ({"n_ranks": 2}, "adamw", True, False, False),
    ],
)
def test_gradients_are_copied_where_the_engine_copies_them(
    stage: int,
    changes: dict[str, object],
    optimizer: str,
    is_cpu: bool,
    is_fused: bool,
    stays: bool | None,
) -> None:
    """An update in one pass reads them as they are; one rank alone leaves them where they are."""
    one = layout(zero_stage=stage, **{"n_ranks": 1, **changes})
    found = held(MODEL, one, is_cpu=is_cpu, head=None, predicted_fraction=1.0, optimizer=optimizer)
    if stays is None:  # stage 2 on a GPU sends while it computes
        stays = stage == 1
    at = moments(found, one)
    kinds = {t.kind for t in at["update"] if t.part == "gradients"}
    assert ("fp32" not in kinds) == (is_fused or one.offload != "none")
    own = sum(t.size for t in at["update"] if t.kind == "own")
    assert own == (pytest.approx(2 * SIZE) if stays else 0)
    if one.offload == "none":
        assert bool(at["scatter"]) != stays


def test_muon_has_one_moment_of_its_matrices() -> None:
    adamw, muon = (run_memory(MODEL, layout(), H100, optimizer=o) for o in ("adamw", "muon"))
    one = layout()
    kinds = {
        name: held(MODEL, one, is_cpu=False, head=None, predicted_fraction=1.0, optimizer=name)
        for name in ("adamw", "muon")
    }
    hidden = 16 * (2048 * (2048 + 2 * 512) + 2048 * 2048 + 3 * 2048 * 8192)
    saved = kinds["adamw"].moment_bytes - kinds["muon"].moment_bytes
    assert saved == pytest.approx(4 * hidden / 8)
    assert muon.total < adamw.total


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_lion_has_one_moment(stage: int) -> None:
    one = layout(zero_stage=stage, precision="fp32" if stage == 0 else "bf16")
    kinds = {
        name: held(MODEL, one, is_cpu=False, head=None, predicted_fraction=1.0, optimizer=name)
        for name in ("adamw", "lion")
    }
    assert kinds["lion"].moment_bytes == kinds["adamw"].moment_bytes / 2
    adamw, lion = (sum(t.size for t in resident(kinds[name], one)[0]) for name in ("adamw", "lion"))
    assert adamw - lion == pytest.approx(kinds["lion"].moment_bytes)
    saved = {name: checkpoint_size(MODEL, "causal_lm", "bf16", name).total for name in kinds}
    assert saved["adamw"] - saved["lion"] == 4 * parameters(MODEL, "causal_lm")


def test_parts_add_up_and_lie_in_the_interval() -> None:
    for stage in (1, 2, 3):
        for device in (H100, CPU):
            found = memory(device, zero_stage=stage)
            names = RunMemory._fields[: RunMemory._fields.index("low")]
            assert found.total == pytest.approx(sum(getattr(found, n) for n in names))
            assert all(getattr(found, name) >= 0 for name in names)
            assert found.low < found.total < found.high


def test_more_of_everything_takes_more() -> None:
    base = memory()
    assert memory(micro_batch_size=8).total > base.total
    assert memory(seq_len=4096).total > base.total
    assert memory(recompute="block").total < base.total
    assert memory(n_ranks=64).total < base.total
    assert memory(zero_stage=3, shard_ranks=8, n_ranks=64).weights == pytest.approx(
        2 * SIZE / 64 + 2 * SIZE / 8
    )


def test_a_save_is_a_second_copy_in_the_host() -> None:
    found = memory(CPU)
    assert found.checkpoint == pytest.approx((12 / 8 + 2) * SIZE), "one rank writes the one file"
    assert found.host == pytest.approx(found.total - 7 / 8 * 2 * SIZE), "of which a node has one"
    assert memory(H100).checkpoint == 0
    plain = memory(CPU, zero_stage=0, precision="fp32")  # whole on every rank, saved once
    assert plain.checkpoint == pytest.approx((12 / 8 + 4) * SIZE)
    at_end = run_memory(MODEL, layout(), CPU, saves="at_end")
    assert at_end.total < found.total


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["gpt2-124m", "llama-2-7b"])
def test_the_first_rank_saves_whole_files_of_weights(name: str, n_ranks: int) -> None:
    model = preset(name)
    weights = 2 * parameters(model)
    files = [
        ModelFiles(model, "causal_lm", torch.bfloat16, part=Part(rank, n_ranks)).wanted()
        for rank in range(n_ranks)
    ]
    sizes = {slot.ours: 2 * math.prod(slot.shape) for slot in slots(model, "causal_lm")}
    most = max(sum(sizes[name] for name in wanted) for wanted in files)
    part = Size(weights, 6 * weights).largest_part(n_ranks)
    # A file ends before the matrix that it has no room for.
    assert part - 6 * weights / n_ranks == pytest.approx(most, rel=0.03)


def test_small_blocks_stay_with_the_process() -> None:
    """glibc gives back blocks of 32 MiB and more; each kind of smaller ones is there for good."""
    tiny = Layout(2, 2, 1, 64, 1, "fp32")
    found = run_memory(SMALL, tiny, CPU, tensorboard=False)
    size = parameters(SMALL)
    # At the peak the bucket, its copy that is sent and all states are large blocks; what is
    # freed and kept are activations and scores of 128 tokens, and copies of the largest parameter.
    assert found.moment == "reduce"
    assert found.communication + found.gradients == pytest.approx(12 * size)
    largest = 8192 * 640
    small = sum(t.size for t in moments(_held(tiny), tiny)["logits"]) + 8 * largest
    # A tenth of the heap, in which the gradients are too, are gaps.
    assert found.fragmentation == pytest.approx(small + 0.1 * (small + 4 * size))


def _held(one: Layout):
    return held(SMALL, one, is_cpu=True, head=None, predicted_fraction=1.0, optimizer="adamw")


def test_gradients_of_a_large_model_pass_through_a_bucket() -> None:
    """Stages 2 and 3 never hold all of them: there is a bucket of 500 M numbers."""
    large = preset("llama-3-70b")
    found = {
        stage: run_memory(large, layout(zero_stage=stage, n_ranks=128, micro_batch_size=1), H100)
        for stage in (1, 2, 3)
    }
    size = parameters(large)
    assert found[1].gradients > 2 * size
    assert found[2].gradients < 0.2 * size
    assert found[3].gradients + found[3].communication < 5e9
