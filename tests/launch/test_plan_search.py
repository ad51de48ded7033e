"""What the search finds, why, and how it scales."""

from typing import Any

import pytest

from launch.estimate.devices import find
from launch.estimate.layout import Layout
from launch.estimate.memory import run_memory
from launch.estimate.network import default_network
from launch.plan import explain, scaling
from launch.plan.nothing import nothing_fits
from launch.plan.search import (
    Ask,
    Candidate,
    best_of,
    combinations,
    divisors,
    fits_device,
    memory_of,
    mfu,
    room,
    search,
    time_of,
)
from launch.plan.subject import find_subject
from launch.plan.write import planned
from runtime.legality import Combination, check_combination

TOKENS = 10**12


def ask(model: str = "llama-3-8b", gpu: str = "h100", **more: Any) -> Ask:
    device = find(gpu)
    subject = find_subject(model, None)
    network = default_network(device)
    base = Ask(subject, device, network, 64, 8, subject.seq_len, 512, "bf16", False, 1e12)
    return base._replace(**more)


def test_the_best_is_the_fastest_of_all_that_fit() -> None:
    """Against a plain loop over everything."""
    asked = ask("llama-2-7b", gpus=16, global_batch_size=64)
    fastest = None
    for combination in combinations(asked):
        if combination.offload != "none":
            continue
        for micro in (1, 2, 4):
            layout = combination._replace(micro_batch_size=micro, accumulation_steps=4 // micro)
            if memory_of(asked, layout).high > asked.device.memory_bytes:
                continue
            total = time_of(asked, layout).total_s
            fastest = total if fastest is None else min(fastest, total)
    plain = [one for one in search(asked).fitting if one.layout.offload == "none"]
    assert plain[0].time.total_s == fastest


def test_everything_found_fits_and_keeps_the_batch() -> None:
    asked = ask()
    found = search(asked)
    assert len(found.fitting) > 10
    assert found.refused
    for candidate in found.fitting:
        assert candidate.layout.global_batch_size == 512
        assert candidate.layout.n_ranks == 64
        assert candidate.layout.sequence_parallel == 1
        assert candidate.memory.high <= asked.device.memory_bytes
        assert candidate.memory == run_memory(
            asked.subject.model, candidate.layout, asked.device, head="causal_lm"
        )
    for refused in found.refused:
        assert refused.layout.micro_batch_size == 1
        assert refused.is_host or refused.memory.high > asked.device.memory_bytes


def test_three_best_differ_in_more_than_batch_and_offload() -> None:
    best = best_of(search(ask()))
    assert len(best) == 3
    kinds = {(b.layout.zero_stage, b.layout.shard_ranks, b.layout.recompute) for b in best}
    assert len(kinds) == 3
    reasons = [explain.why_slower(best[0], other) for other in best[1:]]
    assert all(
        "slower" in reason or "faster" in reason or "as fast" in reason for reason in reasons
    )


@pytest.mark.parametrize("gpu", ["h100", "v100-32", "cpu"])
def test_every_combination_is_legal(gpu: str) -> None:
    """As the run's own check reads the table of what goes together."""
    precision = {"h100": "bf16", "v100-32": "fp16", "cpu": "fp32"}[gpu]
    count = 0
    for gpus in (1, 2, 8, 12, 64):
        asked = ask("gpt2-124m", gpu, gpus=gpus, precision=precision, nvme_path="/mnt/nvme")
        for layout in combinations(asked):
            candidate = Candidate(layout, memory_of(asked, layout), time_of(asked, layout))
            config = planned(asked, candidate, TOKENS)
            device = "cpu" if gpu == "cpu" else "cuda"
            combination = Combination(
                config.parallel, config.precision, config.compile, device, gpus
            )
            assert list(check_combination(combination)) == []
            assert layout.sequence_parallel == 1
            count += 1
    assert count > 20


def test_what_offload_and_groups_the_search_tries() -> None:
    tried = combinations_of(ask(nvme_path="/mnt/nvme"))
    assert (3, "none", "cpu", 8) in tried
    assert (3, "all", "cpu", 8) in tried
    assert (3, "optimizer", "nvme", 8) in tried
    assert (3, "all", "nvme", None) in tried
    assert (3, "all", "nvme", 8) not in tried
    assert not any(target == "nvme" for *_, target, _ in combinations_of(ask()))
    # Groups of a node's ranks only where there are several whole nodes.
    assert not any(one.shard_ranks for one in combinations(ask(gpus=8)))
    assert not any(one.shard_ranks for one in combinations(ask(gpus=12)))


def combinations_of(asked: Ask) -> list[tuple[int, str, str, int | None]]:
    return [
        (one.zero_stage, one.offload, one.offload_to, one.shard_ranks)
        for one in combinations(asked)
    ]


def test_small_models_need_no_sharding_of_weights() -> None:
    best = search(ask("gpt2-124m", gpus=8, global_batch_size=512)).fitting[0].layout
    assert best.zero_stage in (1, 2)
    assert best.recompute == "none"
    assert best.micro_batch_size >= 16  # larger products, fewer launches


def test_large_models_shard_and_compute_again() -> None:
    found = search(ask("llama-3-70b", gpus=128, global_batch_size=512))
    best = found.fitting[0].layout
    assert best.zero_stage == 3
    assert {one.layout.zero_stage for one in found.refused} >= {1, 2}
    reasons = list(explain.why_not(ask("llama-3-70b", gpus=128), found))
    assert any(reason.startswith("ZeRO-1: a micro-batch of 1 needs ") for reason in reasons)
    assert all("GB" in reason for reason in reasons)


def test_more_memory_or_bandwidth_is_never_slower() -> None:
    asked = ask(gpus=32)
    base = search(asked).fitting[0].time.total_s
    larger = asked.device._replace(memory_bytes=2 * asked.device.memory_bytes)
    assert search(asked._replace(device=larger)).fitting[0].time.total_s <= base
    faster = asked.network._replace(wire=2 * asked.network.wire, link=2 * asked.network.link)
    assert search(asked._replace(network=faster)).fitting[0].time.total_s <= base


def test_a_slow_network_moves_the_choice_to_layouts_that_say_less() -> None:
    asked = ask("llama-2-13b", gpus=64, global_batch_size=512)
    slow = asked._replace(network=asked.network._replace(wire=0.5e9))
    fast, starved = (search(one).fitting[0] for one in (asked, slow))
    assert starved.time.total_s > fast.time.total_s
    assert explain.shares(starved)["exposed communication"] > 0.3 * starved.time.total_s
    assert explain.bound(starved).startswith("bound by exposed communication")
    assert explain.bound(fast).startswith("bound by compute")
    per_step = starved.time.communication_s
    repeated = time_of(slow, fast.layout).communication_s
    assert per_step <= repeated


def test_shares_add_up_to_the_step() -> None:
    for candidate in search(ask()).fitting:
        assert sum(explain.shares(candidate).values()) == pytest.approx(candidate.time.total_s)


def test_mfu_is_flops_over_peak() -> None:
    asked = ask()
    candidate = search(asked).fitting[0]
    # Llama 3 8B at 8,192: 6 · (6.98e9 + 0.525e9) + 12 · 32 · 4096 · 8192 FLOPs a token.
    per_token = 6 * (32 * (4096 * 6144 + 4096**2 + 3 * 4096 * 14336) + 128256 * 4096)
    per_token += 12 * 32 * 4096 * 8192
    by_hand = per_token * candidate.tokens_per_second / (64 * 989e12)
    assert mfu(asked, candidate).full == pytest.approx(by_hand, rel=1e-9)


def test_nothing_fits_says_by_how_much_and_what_would() -> None:
    asked = ask("llama-3-70b", gpus=2, global_batch_size=64, host_memory=100e9)
    found = search(asked)
    assert not found.fitting
    told = nothing_fits(asked, found)
    assert "\n" not in told
    assert told.startswith(
        "llama-3-70b does not fit on 2 × h100 of 84.9 GB: with the least (ZeRO-3"
    )
    assert " are short of " in told
    gpus = int(told.split("--gpus ")[1].split(";")[0])
    batch = -(-64 // gpus) * gpus
    assert search(asked._replace(gpus=gpus, global_batch_size=batch)).fitting
    half = asked._replace(gpus=gpus // 2, global_batch_size=-(-64 // (gpus // 2)) * (gpus // 2))
    assert not search(half).fitting


def test_ranks_of_a_cpu_share_its_memory() -> None:
    asked = ask("gpt2-tiny", "cpu", gpus=2, gpus_per_node=2, global_batch_size=16)
    assert room(asked) == asked.device.memory_bytes / 2
    for candidate in search(asked).fitting:
        assert candidate.layout.offload == "none"
        assert fits_device(asked, candidate.memory)


def test_divisors() -> None:
    for number in (1, 12, 36, 97, 512):
        assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_states_are_those_of_rajbhandari_et_al() -> None:
    """Table 1: 2Ψ + 2Ψ + 12Ψ, of which each stage divides one more by the ranks."""
    asked = ask("llama-2-7b", gpus=64)
    size = 6_738_415_616
    for candidate in search(asked).fitting:
        if candidate.layout.offload != "none" or candidate.layout.shard_ranks:
            continue
        weights = 64 if candidate.layout.zero_stage == 3 else 1
        assert candidate.memory.optimizer == pytest.approx(12 * size / 64, rel=0.05)
        assert candidate.memory.weights == pytest.approx(2 * size / weights, rel=0.01)


# --- scaling -------------------------------------------------------------------------------------


def test_scaling_keeps_the_batch_until_there_is_a_sequence_for_each_rank() -> None:
    points = scaling.simulate(ask("llama-2-7b", global_batch_size=256), 0.8, TOKENS)
    assert [point.gpus for point in points] == [2**n for n in range(15)]
    for point in points:
        assert point.global_batch_size == max(256, point.gpus)
        grew = [why for why in point.breaks if "micro-batch below 1" in why]
        assert bool(grew) == (point.gpus > 256)
    rates = [point.best.tokens_per_second for point in points if point.best]
    assert rates == sorted(rates)
    assert max(point.efficiency or 0 for point in points) == 1.0


def test_scaling_breaks_where_the_network_is_slow() -> None:
    asked = ask("llama-2-7b", global_batch_size=256)
    slow = asked._replace(network=asked.network._replace(wire=2e9))
    points = {point.gpus: point for point in scaling.simulate(slow, 0.8, TOKENS)}
    assert not points[8].breaks
    assert any("efficiency below 80%" in why for why in points[64].breaks)
    assert "breaks at " in scaling.first_break(list(points.values()))
    relaxed = {point.gpus: point for point in scaling.simulate(slow, 0.01, TOKENS)}
    assert not any("efficiency" in why for why in relaxed[64].breaks)


def test_scaling_tells_what_does_not_fit() -> None:
    asked = ask("llama-3-70b", global_batch_size=1024, host_memory=50e9)
    points = scaling.simulate(asked, 0.8, TOKENS)
    assert points[0].best is None
    assert points[0].breaks == ("does not fit",)
    assert points[10].best is not None
    text = "\n".join(scaling.table(points, asked.seq_len, 10**12))
    assert "does not fit" in text
    assert scaling.first_break(points).startswith("fits from ")


def test_a_batch_that_ranks_cannot_share_is_rounded_up() -> None:
    assert [scaling.batch_for(96, n) for n in (1, 32, 64, 128)] == [96, 96, 128, 128]
    points = {
        p.gpus: p for p in scaling.simulate(ask("gpt2-124m", global_batch_size=96), 0.0, TOKENS)
    }
    assert points[64].breaks == ("batch rounded up from 96",)


def test_layouts_in_words() -> None:
    layout = Layout(64, 2, 4, 4096, 3, recompute="block", offload="optimizer", shard_ranks=8)
    assert explain.layout_text(layout) == (
        "ZeRO-3, hpZ groups of 8, micro-batch 2 × 4, computes whole blocks again, optimizer in "
        "host memory"
    )


def test_batches_far_beyond_the_advised_one_are_told() -> None:
    asked = ask("gpt2-124m", gpus=8, global_batch_size=512)
    points = scaling.simulate(asked, 0.0, 10**10)
    # 124M weights, the head's among them, and half of the attention of 1,024 tokens: 6.7e8 FLOPs a
    # token; 6.7e18 of the run advise 0.42M tokens, 410 sequences; twice that are 820.
    told = [p.gpus for p in points if any("scaling laws advise" in why for why in p.breaks)]
    assert told == [1024, 2048, 4096, 8192, 16384]


def test_the_ranks_of_a_node_share_its_memory() -> None:
    asked = ask("llama-2-13b", gpus=8, global_batch_size=64)
    needs = sorted({8 * one.memory.host for one in search(asked).fitting})
    tight = asked._replace(host_memory=needs[len(needs) // 2])
    found = search(tight)
    assert all(8 * one.memory.host <= tight.host_memory for one in found.fitting)
    short = [one for one in found.refused if one.is_host]
    assert short
    assert any("host memory" in reason for reason in explain.why_not(tight, found))


def test_the_config_of_every_candidate_says_its_layout() -> None:
    asked = ask("llama-2-13b", gpus=16, global_batch_size=64)
    seen = set()
    for candidate in search(asked).fitting:
        layout, config = candidate.layout, planned(asked, candidate, TOKENS)
        seen.add(layout.recompute)
        assert config.parallel.zero_stage == layout.zero_stage
        assert config.parallel.activation_checkpointing == layout.recompute
        assert config.parallel.offload == layout.offload
        assert config.micro_batch_size(16) == layout.micro_batch_size
        assert config.accumulation_steps(16) == layout.accumulation_steps
        assert config.tokens_per_step == layout.tokens_per_step
    assert len(seen) > 1
