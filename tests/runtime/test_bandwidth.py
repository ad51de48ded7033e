"""The self-test of the network: who is named, and what is computed."""

import itertools

import pytest

from runtime.bandwidth import bus_bandwidth, rounds, slow_hosts, who_is_unreached


@pytest.mark.parametrize("number", [2, 3, 4, 7, 8, 16])
def test_every_pair_meets_once_and_nobody_plays_twice_at_once(number: int) -> None:
    found = rounds(number)
    assert len(found) <= number
    for pairs in found:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))
    every = sorted(pair for pairs in found for pair in pairs)
    assert every == list(itertools.combinations(range(number), 2))


def test_bus_bandwidth_is_as_nccl_tests_have_it() -> None:
    algorithm, bus = bus_bandwidth(8_000_000, 0.004, 4)
    assert algorithm == pytest.approx(2e9)
    assert bus == pytest.approx(3e9)
    assert bus_bandwidth(10, 1.0, 2) == pytest.approx((10, 10))


def rates_of(hosts: str, **slow: float) -> dict[tuple[str, str], float]:
    return {
        (a, b): min(slow.get(f"{a}_sends", 1e9), slow.get(f"{b}_receives", 1e9))
        for a, b in itertools.permutations(hosts, 2)
    }


@pytest.mark.parametrize("number", [3, 4, 8])
@pytest.mark.parametrize("side", ["sends", "receives"])
def test_the_slow_host_alone_is_named(number: int, side: str) -> None:
    hosts = "abcdefgh"[:number]
    for victim in hosts:
        (told,) = slow_hosts(rates_of(hosts, **{f"{victim}_{side}": 1e7}))
        assert told.startswith(f"{victim} is slow: it {side} 10 MB/s")
    assert slow_hosts(rates_of(hosts)) == []


def test_of_two_hosts_the_direction_is_told() -> None:
    (told,) = slow_hosts(rates_of("ab", a_sends=1e7))
    assert told.startswith("a → b is slow: 10 MB/s, and 1,000 MB/s the other way")
    assert slow_hosts(rates_of("ab")) == []


def test_who_is_cut_off() -> None:
    assert who_is_unreached([]) == ""
    told = who_is_unreached([("a", "c"), ("b", "c"), ("c", "a")])
    assert "c is in each of these: a → c, b → c, c → a" in told
    assert "in each" not in who_is_unreached([("a", "b"), ("c", "d")])
    assert "in each" not in who_is_unreached([("a", "b"), ("b", "a")])
