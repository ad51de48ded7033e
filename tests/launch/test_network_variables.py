"""Variables of NCCL and gloo that would have no effect, or a bad one."""

import pytest

from launch.cluster.network_variables import (
    contradictions,
    matching,
    misfits,
    unknown,
    unused_infiniband,
)


def facts(infiniband: tuple[str, ...] = (), **variables: str) -> dict[str, object]:
    there = ["lo", "eth0", "docker0"]
    return {"environment": variables, "interfaces": there, "infiniband": list(infiniband)}


def test_unknown_names_with_the_nearest() -> None:
    names = {"NCCL_SOCKET_IFNAMES": "eth0", "NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "lo"}
    (told,) = unknown(names)
    assert told == (
        "NCCL_SOCKET_IFNAMES is not a variable of NCCL or gloo; did you mean NCCL_SOCKET_IFNAME?"
    )


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ("eth", ["eth0"]),
        ("=eth", []),
        ("=eth0,lo", ["lo", "eth0"]),
        ("^docker,lo", ["eth0"]),
        ("^=docker0", ["lo", "eth0"]),
    ],
)
def test_nccls_way_of_choosing(chosen: str, found: list[str]) -> None:
    assert matching(chosen, ["lo", "eth0", "docker0"]) == found


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth1"}, "GLOO_SOCKET_IFNAME=eth1 fits no network interface there"),
        ({"NCCL_SOCKET_IFNAME": "ib"}, "NCCL_SOCKET_IFNAME=ib fits no network interface there"),
        ({"NCCL_IB_HCA": "mlx5_0"}, "NCCL_IB_HCA=mlx5_0 is set and there is no InfiniBand"),
        ({"NCCL_DEBUG": "YES"}, "NCCL_DEBUG=YES: expected one of VERSION, WARN, INFO"),
    ],
)
def test_what_a_host_does_not_have(variables: dict[str, str], told: str) -> None:
    (found,) = misfits(facts(**variables))
    assert found.startswith(told)


def test_what_a_host_has() -> None:
    assert not list(misfits(facts(GLOO_SOCKET_IFNAME="eth0", NCCL_SOCKET_IFNAME="^lo,docker")))
    assert not list(misfits(facts(("mlx5_0", "mlx5_1"), NCCL_IB_HCA="mlx5_1:1")))
    (found,) = misfits(facts(("mlx5_0",), NCCL_IB_HCA="=mlx5_7"))
    assert found == "NCCL_IB_HCA==mlx5_7 fits no InfiniBand adapter there (mlx5_0)"


def test_infiniband_that_is_switched_off() -> None:
    assert "mlx5_0 is there" in unused_infiniband(facts(("mlx5_0",), NCCL_IB_DISABLE="1"))
    assert unused_infiniband(facts(("mlx5_0",), NCCL_IB_DISABLE="0")) == ""
    assert unused_infiniband(facts(NCCL_IB_DISABLE="1")) == ""


def test_values_that_differ_between_hosts() -> None:
    environments = {
        "a": {"NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "eth0"},
        "b": {"NCCL_ALGO": "Ring", "NCCL_SOCKET_IFNAME": "eth1"},  # hosts name theirs differently
        "c": {"NCCL_SOCKET_IFNAME": "eth0"},
    }
    ((host, told),) = contradictions(environments)
    assert host == "c"
    assert told.startswith("NCCL_ALGO is unset, and Ring on a")
