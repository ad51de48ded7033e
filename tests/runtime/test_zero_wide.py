"""Offload to host memory and disk, and hierarchical partitioning: equal to plain ZeRO-3."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.legality import missing_for_nvme
from tests.processes import run
from tests.runtime.wide_worker import LAYOUTS

IN_MEMORY = [name for name in LAYOUTS if "disk" not in name]
ON_DISK = [name for name in LAYOUTS if "disk" in name]


def work(root: Path, optimizer: str, ranks: int, *layouts: str) -> dict[str, Any]:
    arguments = ["tests/runtime/wide_worker.py", str(root), optimizer, *layouts]
    status, output = run(arguments, ranks, timeout=600)
    assert status == 0, output
    found: dict[str, Any] = json.loads(
        next(line for line in output.splitlines() if line[:2] == '{"')
    )
    return found


def assert_equal_to_plain(found: dict[str, Any], plain: list[float]) -> None:
    """The same losses, whoever wrote the state; every other service of the engine works."""
    for name, values in found.items():
        assert values["losses"] == pytest.approx(plain, rel=1e-6), name
        assert values["again"]
        for source, losses in values["again"].items():
            assert losses == pytest.approx(plain, rel=1e-6), f"{source} → {name}"
        assert values["skipped"], f"{name}: a refused step changed something"
        assert values["whole"], f"{name}: exported parameters are not whole"
        for told in values["drifts"]:
            clean, weight, *_, last = json.loads(told)
            assert clean == []
            # A part on disk has not been touched; its master weights have, the next time.
            assert weight in ([[1, "embedding.weight"]], []), name
            assert last[0][0] == 1, name


def test_without_a_disk(tmp_path: Path) -> None:
    found = work(tmp_path, "adamw", 2, *IN_MEMORY)
    plain = found["plain"]["losses"]
    assert_equal_to_plain(found, plain)
    assert found["hpz"]["losses"] == plain, "hpZ moves bytes alone"
    assert all(values["disk"] == [0, 0] for values in found.values())
    for name, values in found.items():
        copied, own = values["copies"]
        assert copied == (own if "hpz" in name else 0)


@pytest.mark.slow
def test_four_ranks_in_two_groups_take_up_what_two_ranks_wrote(tmp_path: Path) -> None:
    """The second copy is cut among two, the first among four. With Muon, in pieces on all."""
    plain = work(tmp_path, "muon", 2, "plain")["plain"]["losses"]
    found = work(tmp_path, "muon", 4, "hpz", "hpz-host")
    assert set(found["hpz-host"]["again"]) == {"2-plain", "4-hpz", "4-hpz-host"}
    assert_equal_to_plain(found, plain)
    for values in found.values():
        copied, own = values["copies"]
        assert copied == 2 * own, "a half of each parameter, beside a quarter"


def is_built() -> bool:
    """Whether DeepSpeed's async_io lies compiled in torch's cache, and by this environment.

    Another one's would be compiled again.
    """
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory("async_io", False))
    rules = folder / "build.ninja"
    is_ours = rules.is_file() and f"{sys.prefix}/" in rules.read_text(encoding="utf-8")
    return is_ours and (folder / "async_io.so").exists()


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param("adamw", marks=pytest.mark.slow),
        pytest.param("muon", marks=pytest.mark.nightly),
        pytest.param("lion", marks=pytest.mark.nightly),
    ],
)
def test_on_disk(optimizer: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if missing := missing_for_nvme():
        pytest.skip(f"async_io cannot be built here: no {missing}")
    if not is_built() and request.config.getoption("-m") != "nightly":
        pytest.skip("async_io is not built here yet, which takes minutes; the nightly run does it")
    plain = work(tmp_path, optimizer, 2, "plain")["plain"]["losses"]
    found = work(tmp_path, optimizer, 2, *ON_DISK)
    assert_equal_to_plain(found, plain)
    assert found["disk"]["disk"][0] >= 2, "nothing was on disk"
    assert found["disk-all"]["disk"][1] >= 1, "no parameter was on disk"
    assert not list(tmp_path.rglob("*.swp")), "swapped tensors are left behind"
