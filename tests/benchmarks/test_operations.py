"""Ways to compute an operation agree, and rows say what was moved and what was left out."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.in_place import GATED, as_in_the_model, in_place
from benchmarks.kernels import cases, install_liger, is_our_failure, measure, timed
from benchmarks.kernels import run as run_once
from benchmarks.operations import OPERATIONS, NotHereError
from tests.model.kernels.interpreted.closeness import assert_close

CPU = torch.device("cpu")
KINDS = ("swiglu", "geglu", "gelu", "gelu_tanh")


def gradient_by(function, x: Tensor, onto: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of x, with what flows back into the output."""
    outputs = function(x)
    outputs.backward(onto)
    assert x.grad is not None
    return outputs.detach(), x.grad


def check_in_place(kind: str, *, compiled: bool) -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(37, 2 * 24)
    onto = torch.randn(37, 24 if kind in GATED else 48)
    want = gradient_by(as_in_the_model(kind), x.double().requires_grad_(), onto.double())
    leaf = x.clone().requires_grad_()
    found = gradient_by(in_place(kind, compiled=compiled), leaf, onto)
    assert_close(found, want, 1e-6)
    assert found[1].data_ptr() == leaf.data_ptr()  # it has the input's memory


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_place_are_those_of_the_model(kind: str) -> None:
    check_in_place(kind, compiled=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_place_and_compiled_are_those_of_the_model(kind: str) -> None:
    check_in_place(kind, compiled=True)


@pytest.mark.parametrize("way", ["eager", "in place"])
def test_every_turn_starts_from_the_same_input(way: str) -> None:
    operation = OPERATIONS["swiglu"]
    case = operation.case(way, operation.shapes("dry")[0], torch.float32, CPU)
    first = case.leaves[0].detach().clone()
    gradients = []
    for _ in range(3):
        timed(case, CPU, 1, backward=True)
        gradients.append(case.leaves[0].grad.clone())
    assert torch.equal(gradients[0], gradients[2])
    case.restore()
    assert torch.equal(case.leaves[0].detach(), first)


def test_a_way_that_an_activation_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'inplace', expected one of eager, compiled"):
        OPERATIONS["gelu"].case("inplace", {"N": 2, "d_ff": 4}, torch.float32, CPU)


@pytest.mark.parametrize("name", ["swiglu", "geglu", "rotary_alone", "norm"])
def test_liger_is_left_out_on_a_cpu(name: str) -> None:
    operation = OPERATIONS[name]
    (way, *_) = [way for way in operation.ways if way.startswith("liger")]
    with pytest.raises(NotHereError, match="runs on a GPU only"):
        operation.case(way, operation.shapes("dry")[0], torch.float32, CPU)


def test_shapes_on_a_cpu_are_of_real_size() -> None:
    for name, operation in OPERATIONS.items():
        for shape in operation.shapes("cpu"):
            assert operation.bytes_moved(shape, 2) > 10e6, name


def test_rows_say_what_was_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = OPERATIONS["gelu"]
    monkeypatch.setattr(operation, "ways", ("eager", "compiled", "in place"))
    given = {"ops": ["gelu"], "size": "dry", "device": "cpu", "dtype": "fp32"}
    options = argparse.Namespace(**given, turns=2, repeats=1, threads=1, skip=["compiled"])
    skipped, *rows = measure(options, ceiling=1e9)
    assert (skipped["way"], skipped["left_out"]) == ("compiled", "skipped")
    assert [row["way"] for row in rows] == ["eager", "in place"]
    for row in rows:
        assert row["bytes_moved"] == 5 * 4 * 64 * 48  # read, written; read twice, written
        share = row["bytes_moved"] / (row["both_ms"] / 1e3) / 1e9
        assert row["of_copy"] == pytest.approx(share)


def test_a_way_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = OPERATIONS["gelu"]
    make = operation.case

    def case(way, *arguments):
        if way == "ours":
            raise ValueError  # without a word, and of no kind that is expected
        if way == "liger":
            raise NotHereError("needs a GPU")
        if way == "torch":
            raise RuntimeError("not on this device")
        return make(way, *arguments)

    monkeypatch.setattr(operation, "ways", ("ours", "liger", "torch", "eager"))
    monkeypatch.setattr(operation, "case", case)
    found, left_out = cases(operation, operation.shapes("dry")[0], torch.float32, CPU, [])
    assert list(found) == ["eager"]
    told = {"ours": "fails: ValueError", "torch": "fails: not on this device"}
    assert left_out == {**told, "liger": "needs a GPU"}
    failing = [w for w, why in left_out.items() if is_our_failure({"way": w, "left_out": why})]
    assert failing == ["ours"]


def test_gradients_that_flow_back_are_made_once() -> None:
    operation = OPERATIONS["gelu"]
    case = operation.case("eager", operation.shapes("dry")[0], torch.float32, CPU)
    run_once(case, backward=True)
    output = case.call()
    assert case.gradients_of([output])[0] is case.gradients_of([output])[0]


def test_liger_that_cannot_be_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    install_liger(tmp_path)
    assert f"liger-kernel could not be installed in {tmp_path}" in capfd.readouterr().err


def test_liger_that_is_there_is_not_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "liger_kernel").mkdir()
    install_liger(tmp_path)
    assert capfd.readouterr().err == ""
