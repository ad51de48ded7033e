"""Step time against arithmetic done by hand, and against what can only be one way round."""

import math

import pytest

from launch.estimate import devices
from launch.estimate.devices import DEVICES, Device, find
from launch.estimate.layout import Layout
from launch.estimate.network import (
    GIVEN,
    START_S,
    Network,
    all_reduce_time,
    bus_bandwidth,
    default_network,
    replica_time,
    ring_time,
)
from launch.estimate.software import EAGER
from launch.estimate.step_time import StepTime, step_time
from model import flops
from model.config import ModelConfig
from model.presets import preset
from runtime.errors import UserError

H100 = find("h100")
NETWORK = Network(link=450e9, wire=50e9, latency_s=9.6e-6, overlap=0.5, link_latency_s=3.4e-6)


def timed(
    model: ModelConfig | str = "llama-2-7b",
    layout: Layout | None = None,
    device: Device = H100,
    network: Network = NETWORK,
    **more: object,
) -> StepTime:
    shape = preset(model) if isinstance(model, str) else model
    layout = (layout or Layout(64, 4, 1, 2048, 3))._replace(**more)
    return step_time(shape, layout, device, network, 8)


def test_peaks_are_those_of_the_flops_table() -> None:
    homes: dict[str, Device] = {}
    for device in DEVICES.values():
        for name in device.torch_names:
            assert name not in homes
            homes[name] = device
    assert set(homes) == set(flops.PEAK_TFLOPS)
    for name, rates in flops.PEAK_TFLOPS.items():
        half = {key: value / 1e12 for key, value in homes[name].peak.items() if key != "fp32"}
        assert half == pytest.approx(rates), name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("h100", "h100"),
        ("H100", "h100"),
        ("a100_80gb", "a100-80gb"),
        ("NVIDIA H200", "h200"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("cpu", "cpu"),
    ],
)
def test_devices_are_found_by_name(written: str, name: str) -> None:
    assert find(written).name == name


@pytest.mark.parametrize(
    ("written", "near"), [("h1000", "h100"), ("a100", "a100-40gb"), ("4090", "rtx4090"), ("", "")]
)
def test_an_unknown_gpu_names_the_nearest(written: str, near: str) -> None:
    with pytest.raises(UserError, match="no GPU") as caught:
        find(written)
    assert caught.value.status == 2
    assert (f"did you mean {near}?" in str(caught.value)) == bool(near)
    assert "\n" not in str(caught.value)


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.this_machine.cache_clear()
    monkeypatch.setattr(devices, "_measured_rates", lambda: (100e9, 20e9))
    monkeypatch.setattr(devices, "_has_bf16_products", lambda: True)
    try:
        found = find("cpu")
    finally:
        devices.this_machine.cache_clear()
    assert found.peak == {"fp32": 100e9, "bf16": 175e9}
    assert found.bandwidth == 20e9
    assert 2**28 < found.memory_bytes < 2**50


# --- the network ---------------------------------------------------------------------------------


def test_a_ring_in_one_node_by_hand() -> None:
    # 8 ranks, 800 MB: 7 hops of 3.4 µs, and 700 MB over 450 GB/s · 235/300.
    by_hand = 8.4e-6 + 7 * 3.4e-6 + 700e6 / (450e9 * 235 / 300)
    assert ring_time(800e6, 8, NETWORK, 8) == pytest.approx(by_hand, rel=1e-12)
    # An all-reduce is a reduce-scatter and an all-gather, started once.
    assert all_reduce_time(800e6, 8, NETWORK, 8) == pytest.approx(2 * by_hand - 8.4e-6, rel=1e-12)


def test_a_ring_across_nodes_by_hand() -> None:
    # 32 ranks on 4 nodes: 3 hops of the 31 leave a node; eight adapters of 50 GB/s are less than
    # NVLink's 450 GB/s.
    by_hand = 8.4e-6 + 3 * 9.6e-6 + 28 * 3.4e-6 + 31 / 32 * 1e9 / (400e9 * 235 / 300)
    assert ring_time(1e9, 32, NETWORK, 8) == pytest.approx(by_hand, rel=1e-12)
    assert bus_bandwidth(NETWORK, 32, 8) == GIVEN * 400e9
    assert bus_bandwidth(NETWORK._replace(wire=100e9), 32, 8) == GIVEN * 450e9


def test_many_small_calls_pay_the_latency_each() -> None:
    once, often = (ring_time(1e9, 16, NETWORK, 8, calls=n) for n in (1, 11))
    assert often - once == pytest.approx(10 * (START_S + 9.6e-6 + 14 * 3.4e-6), rel=1e-9)


def test_one_rank_moves_nothing() -> None:
    assert ring_time(1e9, 1, NETWORK, 8) == all_reduce_time(1e9, 1, NETWORK, 8) == 0.0
    assert replica_time(1e9, 1, NETWORK, 8, is_local=False) == 0.0
    found = timed(layout=Layout(1, 4, 1, 2048, 1))
    assert found.communication_s == found.exposed_s == 0.0


def test_a_tree_is_taken_for_small_messages_on_many_nodes() -> None:
    # 1,024 nodes: 2·1,023 hops of a ring, or 2·10 of a tree, and 14 inside the nodes.
    by_hand = (
        8.4e-6 + 2 * (7 * 3.4e-6 + 10 * 9.6e-6) + 2 * 8191 / 8192 * 1e6 / (0.9 * 400e9 * 235 / 300)
    )
    assert all_reduce_time(1e6, 8192, NETWORK, 8) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("ranks", [2, 8, 9, 64, 1024, 16384])
def test_more_bandwidth_is_never_slower_nor_more_data_faster(ranks: int) -> None:
    for time in (ring_time, all_reduce_time):
        base = time(1e9, ranks, NETWORK, 8)
        assert time(2e9, ranks, NETWORK, 8) > base
        for field in ("link", "wire"):
            faster = NETWORK._replace(**{field: 2 * getattr(NETWORK, field)})
            assert time(1e9, ranks, faster, 8) <= base
        for field in ("latency_s", "link_latency_s"):
            slower = NETWORK._replace(**{field: 2 * getattr(NETWORK, field)})
            assert time(1e9, ranks, slower, 8) >= base


# --- the step ------------------------------------------------------------------------------------


def test_products_take_their_flops_at_the_sustained_rate() -> None:
    """Of a wide model nearly all of a step's matrix products is arithmetic at the largest rate."""
    model = preset("llama-3.1-405b")
    found = timed(model, Layout(1, 4, 1, 8192, 3))
    weights = 126 * (2 * 16384**2 + 2 * 16384 * 1024 + 3 * 16384 * 53248)
    least = 6 * weights * 4 * 8192 / (0.64 * 989e12)
    assert least < found.parts.gemm < 1.05 * least


def test_attention_by_hand() -> None:
    # One layer's pairs: 2048·2049/2; two products forward, five backward; 128 wide heads; rates of
    # 0.64 and 0.54 of the peak, times 2048 / 2304 for a text this short.
    found = timed(layout=Layout(1, 1, 1, 2048, 1))
    flops_forward = 32 * 4 * 32 * 128 * 2048 * 2049 / 2
    rate = 989e12 * 2048 / (2048 + 256)
    by_hand = flops_forward / (0.64 * rate) + 2.5 * flops_forward / (0.54 * rate)
    assert found.parts.attention == pytest.approx(by_hand, rel=1e-9)


def test_computing_again_costs_a_forward_pass_without_its_last_product() -> None:
    plain, again = (
        timed(layout=Layout(8, 4, 1, 2048, 3, recompute=kind)) for kind in ("none", "block")
    )
    # Of a block's forward products all but the last, which nothing needs: 4096·11008 of the
    # 4·4096² + 3·4096·11008 weights. Their unhidden traffic shifts it a little.
    extra = 1 - 11008 / (4 * 4096 + 3 * 11008)
    assert again.parts.gemm / plain.parts.gemm == pytest.approx(1 + extra / 3, rel=2e-3)
    assert again.parts.head == plain.parts.head
    part = timed(layout=Layout(8, 4, 1, 2048, 3, recompute="mlp"))
    assert plain.compute_s < part.compute_s < again.compute_s


def test_what_each_stage_moves() -> None:
    """Rajbhandari et al. 2020, §7: 2Ψ for stages 1 and 2, 3Ψ for stage 3; ours all-reduces."""
    size = flops.parameters(preset("llama-2-7b"))
    unit = 7 / 8 * 2 * size / (450e9 * GIVEN)  # one ring's worth of bf16 on 8 ranks
    moved = {s: timed(layout=Layout(8, 4, 1, 2048, s)).communication_s / unit for s in (1, 2, 3)}
    assert moved[1] == pytest.approx(3, rel=0.01)  # all-reduce of gradients, gather of weights
    assert moved[2] == pytest.approx(3, rel=0.01)
    assert moved[3] == pytest.approx(3, rel=0.5)  # the same bytes, in many more calls
    apart = EAGER._replace(is_reduce_scatter=True)
    found = step_time(
        preset("llama-2-7b"), Layout(8, 4, 1, 2048, 1), H100, NETWORK, 8, software=apart
    )
    assert found.communication_s / unit == pytest.approx(2, rel=0.01)


def test_accumulating_stage_2_reduces_each_time_and_stage_1_once() -> None:
    unit = {
        stage: [timed(layout=Layout(8, 1, n, 2048, stage)).communication_s for n in (1, 2, 3)]
        for stage in (1, 2, 3)
    }
    assert unit[1][0] == pytest.approx(unit[1][1]) == pytest.approx(unit[1][2])
    assert unit[2][2] - unit[2][1] == pytest.approx(unit[2][1] - unit[2][0]) != 0
    assert unit[3][2] == pytest.approx(3 * unit[3][0])


def test_sharding_groups_move_less_between_nodes() -> None:
    whole, hpz, hybrid = (
        timed(layout=Layout(512, 1, 1, 2048, 3, shard_ranks=group, sharding=kind))
        for group, kind in ((None, "hpz"), (8, "hpz"), (8, "hsdp"))
    )
    assert hybrid.communication_s < hpz.communication_s < whole.communication_s
    assert hybrid.optimizer_s == pytest.approx(64 * whole.optimizer_s)
    assert hpz.optimizer_s == whole.optimizer_s


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 8, 64, 4096])
def test_better_machines_are_never_slower(stage: int, ranks: int) -> None:
    layout = Layout(ranks, 2, 2, 2048, stage)
    base = timed(layout=layout).total_s
    for field in ("link", "wire", "overlap"):
        better = NETWORK._replace(**{field: 0.6 if field == "overlap"
                                     else 2 * getattr(NETWORK, field)})  # fmt: skip
        assert timed(layout=layout, network=better).total_s <= base
    faster = H100._replace(peak={k: 2 * v for k, v in H100.peak.items()})
    assert timed(layout=layout, device=faster).total_s < base
    wider = H100._replace(bandwidth=2 * H100.bandwidth)
    assert timed(layout=layout, device=wider).total_s < base
    assert timed(layout=layout._replace(micro_batch_size=4)).total_s > base
    assert timed(layout=layout._replace(compile=True)).total_s < base


def test_parts_make_up_the_step() -> None:
    found = timed(layout=Layout(8, 2, 4, 2048, 2))
    assert found.total_s == pytest.approx(
        found.compute_s + found.exposed_s + found.optimizer_s + found.stragglers_s
    )
    assert sum(found.parts) <= found.compute_s <= 1.05 * sum(found.parts)
    assert found.low_s < found.total_s < found.high_s
    assert 0 < found.exposed_s < found.communication_s


def test_what_hides_costs_nothing_and_the_rest_is_exposed() -> None:
    layout = Layout(8, 4, 2, 2048, 3)
    found = timed(layout=layout)
    assert found.exposed_s == pytest.approx(0.5 * found.communication_s)
    assert timed(layout=layout, network=NETWORK._replace(overlap=1.0)).exposed_s == 0
    nothing = timed(layout=layout, network=NETWORK._replace(overlap=0.0))
    assert nothing.exposed_s == found.communication_s
    # No more hides than there is computing, on a link this slow.
    slow = timed(layout=layout, network=NETWORK._replace(link=1e9, overlap=1.0))
    assert slow.exposed_s == pytest.approx(slow.communication_s - 2 * sum(slow.parts) / 2)


def test_the_slowest_of_many_nodes_sets_the_pace() -> None:
    """The greatest of n normal numbers: 0.57, 1.03 and 1.77 deviations for 2, 4 and 16."""
    for nodes, deviations in ((1, 0.0), (2, 0.564), (4, 1.029), (16, 1.766)):
        found = timed(layout=Layout(8 * nodes, 2, 1, 2048, 3))
        assert found.stragglers_s / found.compute_s == pytest.approx(0.02 * deviations, abs=6e-4)


def test_offload_takes_the_links_time() -> None:
    size = flops.parameters(preset("llama-2-7b"))
    network = NETWORK._replace(host_link=32e9, host_bandwidth=40e9, nvme=3e9)
    layout = Layout(8, 4, 1, 2048, 2, offload="optimizer")
    cpu = timed(layout=layout, network=network)
    assert cpu.optimizer_s == pytest.approx(size / 8 * (6 / 32e9 + 50 / 40e9), rel=1e-9)
    nvme = timed(layout=layout._replace(offload_to="nvme"), network=network)
    assert nvme.optimizer_s - cpu.optimizer_s == pytest.approx(size / 8 * 24 / 3e9, rel=1e-9)


def test_tiny_micro_batches_wait_for_the_host() -> None:
    found = timed("llama-60m", Layout(1, 1, 1, 128, 1))
    assert found.parts.waiting > 0
    assert found.compute_s == pytest.approx(8 * EAGER.host_s, rel=0.01)
    assert timed("llama-60m", Layout(1, 64, 1, 2048, 1)).parts.waiting == 0


def test_ranks_of_a_cpu_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = H100._replace(name="cpu", generation="cpu", peak={"fp32": 1e11, "bf16": 2e11})
    network = default_network(cpu)._replace(link=1e12)
    one, two = (
        step_time(preset("llama-tiny"), Layout(n, 8, 1, 256, 1), cpu, network, 8) for n in (1, 2)
    )
    assert two.compute_s == pytest.approx(2 * one.compute_s)


def test_a_missing_precision_is_told() -> None:
    with pytest.raises(ValueError, match="v100-32 has no bf16; it computes in fp16, fp32"):
        timed(layout=Layout(8, 1, 1, 2048, 1), device=find("v100-32"))


def test_layout_numbers() -> None:
    layout = Layout(64, 2, 4, 4096, 3, shard_ranks=8, sharding="hsdp")
    assert layout.global_batch_size == 512
    assert layout.tokens_per_step == 512 * 4096
    assert (layout.group, layout.state_ranks) == (8, 8)
    assert layout._replace(sharding="hpz").state_ranks == 64
    assert layout._replace(zero_stage=0).state_ranks == 1
    assert math.isclose(layout.micro_tokens, 8192)


def test_a_step_on_a_cpu_is_the_measured_one() -> None:
    """What benchmarks/engine_overhead.py measured on two cores of 198 GFLOP/s and 62 GB/s."""
    cpu = Device("cpu", ("cpu",), 25e9, 62e9, {"fp32": 198e9, "bf16": 346e9}, 31e9, 10, "cpu", 62e9)
    for precision, measured in (("fp32", 0.459), ("bf16", 0.280)):
        layout = Layout(1, 16, 1, 256, 1, precision)
        found = step_time(preset("llama-tiny"), layout, cpu, default_network(cpu), 8)
        assert found.total_s == pytest.approx(measured, rel=0.1)


def test_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)))
    for text, cores in (
        ("siblings\t: 32\ncpu cores\t: 16\n", 16),
        ("siblings\t: 2\ncpu cores\t: 2\n", 32),
        ("", 32),
    ):
        monkeypatch.setattr(devices, "_cpuinfo", lambda text=text: text)
        assert devices._cores() == cores
