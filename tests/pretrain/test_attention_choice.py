"""What computes a run's attention, where FlexAttention works and where it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import flex
from model.attention_backends import Choice, Machine
from pretrain.build import attention_choice
from pretrain.config import PretrainConfig
from runtime import dist, hardware
from runtime.errors import UserError
from tests.pretrain.test_pretrain_config import errors, good, only

Write = Callable[..., Path]
MODEL = {"preset": "llama-tiny", "head_dim": 16}


def chosen(
    problem: str | Callable[..., str] | None, monkeypatch: pytest.MonkeyPatch, **keys: Any
) -> Choice:
    """The choice on an H100 where FlexAttention has this problem."""
    monkeypatch.setattr(Machine, "here", lambda _: Machine("cuda", 90, 91600))
    monkeypatch.setattr(flex, "problem", problem if callable(problem) else lambda *_: problem)
    config = PretrainConfig.model_validate({"steps": 1, "model": MODEL, **keys})
    return attention_choice(config, config.model_config_alone(), torch.device("cpu"))


def test_texts_with_prefixes_take_it_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(None, monkeypatch, objective="prefix_lm")
    assert (found.backend, found.is_asked_for) == ("flex", False)
    found = chosen("no Triton", monkeypatch, objective="prefix_lm")
    assert found.backend == "efficient"
    assert str(found).startswith("attention: memory-efficient, because prefixes need masks")
    assert str(found).endswith("because it does not work here: no Triton")


def test_asked_for_it_works_or_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(None, monkeypatch, attention="flex")
    assert str(found) == "attention: flex, because attention: flex asks for it"
    with pytest.raises(UserError, match="flex does not work on this machine: no Triton; write"):
        chosen("no Triton", monkeypatch, attention="flex")


def test_all_ranks_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "gather_text", lambda told: [told, "no Triton on rank 1"])
    found = chosen(None, monkeypatch, objective="prefix_lm")
    assert found.backend == "efficient"
    assert str(found).endswith("because it does not work here: no Triton on rank 1")
    # A rank whose own card has no use for it tells the others so, and does not leave them waiting.
    told: list[str] = []
    monkeypatch.setattr(dist, "gather_text", lambda text: told.append(text) or [text])
    chosen(None, monkeypatch, attention="efficient", objective="prefix_lm")
    assert told == ["another rank's card has no use for it"]


def test_nothing_is_compiled_where_it_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_vain(*_: object) -> str:
        pytest.fail("FlexAttention was tried")

    for keys in ({}, {"attention": "efficient", "objective": "prefix_lm"}):
        assert chosen(in_vain, monkeypatch, **keys).backend != "flex"


def test_what_it_cannot_train_is_told_before_the_start(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(attention="flex", model=MODEL)
    only(errors(path), "attention: flex needs a GPU, and this run is on a CPU; write auto")
    monkeypatch.setattr(hardware, "device_type", lambda _: "cuda")
    assert good(path).attention == "flex"
    found = errors(path, "model.dropout=0.1")
    only(found, "attention: flex cannot train this model: it drops no", "0.1; write auto")
    only(errors(path, "model.head_dim=8"), "it takes heads of at least 16, and model.head_dim is 8")
