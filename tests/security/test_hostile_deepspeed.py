"""X1 for the importer: what DeepSpeed would have saved, from an attacker."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.deepspeed_checkpoint import DeepSpeedCheckpoint, open_checkpoint
from runtime.deepspeed_pickles import FOREIGN, read
from runtime.errors import UserError
from tests.faults.runs import Runs
from tests.security.hostile import (
    bombs,
    gadgets,
    raw_pickle,
    torch_legacy,
    torch_tar,
    torch_zip,
    torchscript,
    zip_of,
)

MODEL = "mp_rank_00_model_states.pt"
OPTIM = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
SHAPES = {"a.weight": torch.Size([3, 5]), "a.bias": torch.Size([3])}


def model_states() -> dict[str, Any]:
    return {
        "module": {"a.weight": torch.ones(3, 5), "a.bias": torch.ones(3)},
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [dict(SHAPES)],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "global_steps": 3,
    }


def optim_states(rank: int) -> dict[str, Any]:
    """Eighteen values over two ranks, ZeRO-1."""
    row = torch.arange(9.0) + 9 * rank
    state = {"step": torch.tensor(3.0), "exp_avg": row + 0.25, "exp_avg_sq": row + 0.5}
    groups = [{"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}]
    return {
        "optimizer_state_dict": {
            "base_optimizer_state": {"state": {0: state}, "param_groups": groups},
            "single_partition_of_fp32_groups": [row],
            "partition_count": [2],
            "param_alignment_paddings": [[0, 0]],
        }
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    directory = tmp_path / "deepspeed" / "global_step3"
    directory.mkdir(parents=True)
    torch.save(model_states(), directory / MODEL)
    for rank in range(2):
        torch.save(optim_states(rank), directory / OPTIM.format(rank))
    (directory.parent / "latest").write_text("global_step3")
    return directory.parent


def refusal(root: Path, tag: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(root, tag)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "weights_only" not in str(caught.value)  # no advice to run it
    return str(caught.value)


def test_a_good_one_is_read(saved: Path) -> None:
    source: DeepSpeedCheckpoint = open_checkpoint(saved)
    assert source.read("a.weight", "master").tolist() == torch.arange(15.0).view(3, 5).tolist()
    assert source.read("a.bias", "exp_avg").tolist() == [15.25, 16.25, 17.25]
    assert (source.step, source.optimizer_steps) == (3, 3)


MARKED: dict[str, Callable[[Path], bytes]] = {
    "pickle": raw_pickle,
    "torch": torch_zip,
    "legacy torch": torch_legacy,
    "torch of 2016": torch_tar,
    "torchscript": torchscript,
    **{
        f"{kind}, {name}": lambda marker, name=name, wrap=wrap: wrap(gadgets(marker)[name])
        for kind, wrap in (("raw", bytes), ("archived", lambda p: zip_of(data_pkl=p)))
        for name in gadgets(Path("x"))
    },
    **{f"bomb, {name}": lambda _, name=name: bombs()[name] for name in bombs()},
}


@pytest.mark.parametrize("file", [MODEL, OPTIM.format(1)])
@pytest.mark.parametrize("name", MARKED)
def test_nothing_is_executed(name: str, file: str, saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    (saved / "global_step3" / file).write_bytes(MARKED[name](marker))
    assert file in refusal(saved)
    assert not marker.exists()


def test_nor_in_the_other_files(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    for name in ("zero_to_fp32.py", "zero_to_torch.py", "sitecustomize.py"):
        (saved / name).write_text(f"import os; os.mkdir({str(marker)!r})")
    for name in ("global_step3/extra.pt", "extra.pkl", "global_step3/rng_state.pth"):
        (saved / name).write_bytes(torch_zip(marker))
    assert open_checkpoint(saved).step == 3
    (saved / "latest").write_bytes(raw_pickle(marker))
    assert "expected the name of a directory" in refusal(saved)
    assert not marker.exists()


def test_universal_files(saved: Path, tmp_path: Path) -> None:
    marker, zero = tmp_path / "was_here", saved / "global_step3" / "zero"
    for name, shape in SHAPES.items():
        (zero / name).mkdir(parents=True)
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            torch.save({"param": torch.ones(shape)}, zero / name / f"{key}.pt")
    state = {"param_groups": [{}], "optimizer_state_dict": {"state": {}, "param_groups": []}}
    torch.save(state, zero / "optimizer_state.pt")
    assert open_checkpoint(saved).read("a.bias", "exp_avg").tolist() == [1, 1, 1]
    for path in sorted(zero.rglob("*.pt")):
        good = path.read_bytes()
        for make in (torch_zip, raw_pickle, torch_legacy):
            path.write_bytes(make(marker))
            assert path.name in refusal(saved)
        path.write_bytes(good)
    content = model_states()
    content["param_shapes"] = [{"../../../evil": torch.Size([3])}]
    torch.save(content, saved / "global_step3" / MODEL)
    assert "names a parameter '../../../evil'" in refusal(saved)
    assert not marker.exists()


def test_foreign_classes_are_never_made(tmp_path: Path) -> None:
    """Their names are answered with a stand-in, whatever the file does with them."""
    for name in FOREIGN:
        module, _, kind = name.rpartition(".")
        made = f"c{module}\n{kind}\n".encode()
        pickles = [
            b"\x80\x02}U\x01x" + made + b")\x81s.",  # made anew
            b"\x80\x02}U\x01x" + made + b")R}U\x0bno_executedK\x01sbs.",  # called and filled
            b"\x80\x02}U\x01x" + made + b")RN}U\x09__class__" + made + b"s\x86bs.",
        ]
        for content in pickles:
            (tmp_path / "x.pt").write_bytes(zip_of(data_pkl=content))
            assert read(tmp_path / "x.pt") == {"x": None}
    before = set(torch.serialization.get_safe_globals())
    read(tmp_path / "x.pt")
    assert set(torch.serialization.get_safe_globals()) == before  # nothing stays allowed


TWISTS: dict[str, tuple[str, list[Any], Any]] = {
    "a negative shape": (MODEL, ["param_shapes", 0, "a.bias"], [-3]),
    "a shape of text": (MODEL, ["param_shapes", 0, "a.bias"], "3"),
    "a huge shape": (MODEL, ["param_shapes", 0, "a.bias"], [2**40]),
    "an endless shape": (MODEL, ["param_shapes", 0, "a.bias"], [2**40, 2**40]),
    "many dimensions": (MODEL, ["param_shapes", 0, "a.bias"], [1] * 100),
    "no shapes": (MODEL, ["param_shapes"], None),
    "shapes of numbers": (MODEL, ["param_shapes"], [3]),
    "more groups": (MODEL, ["param_shapes"], [dict(SHAPES), dict(SHAPES)]),
    "steps of text": (MODEL, ["global_steps"], "three"),
    "negative steps": (MODEL, ["global_steps"], -3),
    "endless steps": (MODEL, ["global_steps"], float("inf")),
    "no number of steps": (MODEL, ["global_steps"], float("nan")),
    "frozen without values": (MODEL, ["frozen_param_shapes"], {"b": [2]}),
    "ranks of text": ("optim", ["partition_count"], ["2"]),
    "too many ranks": ("optim", ["partition_count"], [2**40]),
    "no weights": ("optim", ["single_partition_of_fp32_groups"], []),
    "weights of text": ("optim", ["single_partition_of_fp32_groups"], ["x"]),
    "integers": ("optim", ["single_partition_of_fp32_groups"], [torch.arange(9)]),
    "few weights": ("optim", ["single_partition_of_fp32_groups"], [torch.ones(4)]),
    "elastic": ("optim", ["base_optimizer_state"], [{}]),
    "no state": ("optim", ["base_optimizer_state", "state"], None),
    "no moments": ("optim", ["base_optimizer_state", "state", 0], {"momentum": torch.ones(9)}),
    "short moments": ("optim", ["base_optimizer_state", "state", 0, "exp_avg"], torch.ones(2)),
    "half a step": ("optim", ["base_optimizer_state", "state", 0, "step"], torch.ones(2)),
    "paddings of text": ("optim", ["param_alignment_paddings"], [["x", "y"]]),
    "many paddings": ("optim", ["param_alignment_paddings"], [[0, 0, 0]]),
    "negative paddings": ("optim", ["param_alignment_paddings"], [[-5, 0]]),
    "no groups": ("optim", ["base_optimizer_state", "param_groups"], 7),
}


@pytest.mark.parametrize("name", TWISTS)
def test_contents_that_do_not_fit(name: str, saved: Path) -> None:
    file, path, value = TWISTS[name]
    content = model_states() if file == MODEL else optim_states(0)
    at: Any = content if file == MODEL else content["optimizer_state_dict"]
    *parents, last = path
    for parent in parents:
        at = at[parent]
    at[last] = value
    torch.save(content, saved / "global_step3" / (MODEL if file == MODEL else OPTIM.format(0)))
    assert refusal(saved)


@pytest.mark.parametrize(
    "tag",
    ["../x", "..", ".", "/etc", "a/b", "", " ", "a\0b", "~", "-x", "global_step3/../x", "x" * 300],
)
def test_tags_with_paths(tag: str, saved: Path) -> None:
    assert "expected the name of a directory" in refusal(saved, tag)
    (saved / "latest").write_text(tag)
    assert "expected the name of a directory" in refusal(saved)


def test_the_command_refuses_in_one_line(saved: Path, runs: Runs, tmp_path: Path) -> None:
    marker = tmp_path / "was_here"
    (saved / "global_step3" / MODEL).write_bytes(torch_zip(marker))
    arguments = ["import-deepspeed", runs.directory / "good.yaml", saved, f"run.dir={tmp_path}/new"]
    run = runs.server.start(arguments)
    assert run.wait() == [2], run.output()
    assert run[0].output().startswith("error: ")
    assert run[0].output().count("\n") == 1
    assert not marker.exists()
    assert not (tmp_path / "new").exists()


def test_structure_in_a_buffer_is_no_file(tmp_path: Path) -> None:
    """What torch saves today is an archive of stored entries; nothing else is looked at."""
    buffer = io.BytesIO()
    torch.save({"x": 1}, buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    assert read(tmp_path / "x.pt") == {"x": 1}
    shutil.copy(tmp_path / "x.pt", tmp_path / "y.pt")
    (tmp_path / "y.pt").write_bytes(json.dumps({"x": 1}).encode())
    with pytest.raises(UserError, match="no zip archive"):
        read(tmp_path / "y.pt")


@pytest.mark.parametrize("name", ["expanded", "longer than its bytes", "compressed"])
def test_bombs_are_refused_as_they_are(name: str, tmp_path: Path) -> None:
    """Not only because something else is missing."""
    (tmp_path / "x.pt").write_bytes(bombs()[name])
    words = {
        "expanded": "holds a tensor of 68719476736 values in 16 bytes",
        "longer than its bytes": "refused as a file of DeepSpeed",
        "compressed": "compressed, which torch.save never does",
    }
    with pytest.raises(UserError, match=words[name]):
        read(tmp_path / "x.pt")


def test_a_doubled_structure_is_copied_once(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(bombs()["two of each"])
    found = read(tmp_path / "x.pt")
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]
    assert found == []


def test_hidden_methods_are_not_called(tmp_path: Path) -> None:
    hidden = gadgets(tmp_path)["hidden items"]
    (tmp_path / "x.pt").write_bytes(zip_of(data_pkl=hidden))
    assert read(tmp_path / "x.pt") == {}
