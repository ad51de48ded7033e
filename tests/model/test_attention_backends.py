"""Which kernel computes attention on which machine, and that torch then takes it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from model import ModelConfig, attention_backends, build
from model.attention_backends import Choice, Machine, choose, use
from tests.model.shapes import relative_error, token_ids

CONFIG = ModelConfig.model_validate(
    {"family": "llama", "n_layers": 1, "n_heads": 2, "d_model": 32, "vocab_size": 64}
    | {"max_seq_len": 16}
)
H200, OLD_CUDNN, A100, T4 = (
    Machine("cuda", 90, 91600),
    Machine("cuda", 90, 91400),
    Machine("cuda", 80, 91600),
    Machine("cuda", 75, 91600),
)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def _switches_back() -> Iterator[None]:
    yield
    use(Choice("auto", "", ""))


@pytest.mark.parametrize(
    ("machine", "dtype", "packs", "backend", "told"),
    [
        (H200, BF16, False, "cudnn", "attention: cuDNN, because it is 1.7 to 2.3 times as fast"),
        (OLD_CUDNN, BF16, False, "flash", "because cuDNN 91400 is older than 91500"),
        (A100, BF16, False, "flash", "on compute capability 9.0 and 10.0 alone"),
        (Machine("cuda", 120, 91600), BF16, False, "flash", "9.0 and 10.0 alone"),
        (T4, torch.float16, False, "efficient", "flash needs compute capability 8.0"),
        (T4, torch.float16, True, "efficient", "flash needs compute capability 8.0"),
        (H200, FP32, True, "efficient", "take 16-bit numbers alone"),
        (H200, BF16, True, "flash", "attention: flash, varlen, because rows hold texts apart"),
        (Machine("cpu"), BF16, False, "auto", "torch's kernel for CPUs, because there is no GPU"),
        (Machine("cpu"), BF16, True, "auto", "torch's kernel for CPUs, because there is no GPU"),
    ],
)
def test_the_table(
    machine: Machine, dtype: torch.dtype, packs: bool, backend: str, told: str
) -> None:
    found = choose("auto", machine, CONFIG, dtype, packs_documents=packs)
    assert found.backend == backend
    assert told in str(found)
    asked = choose("math", machine, CONFIG, dtype, packs_documents=packs)
    assert (asked.backend, asked.is_asked_for) == ("math", True)
    assert str(asked) == "attention: math, because attention: math asks for it"


def test_wide_heads_take_no_flash() -> None:
    wide = CONFIG.model_copy(update={"head_dim": 320})
    assert choose("auto", H200, wide, BF16, packs_documents=True).backend == "efficient"


@pytest.mark.parametrize(
    ("machine", "dtype", "more", "backend", "told"),
    [
        (A100, BF16, {}, "flex", "attention: FlexAttention, because it leaves out the tiles"),
        (H200, torch.float16, {}, "flex", "that prefixes hide (arXiv:2412.05496; not measured"),
        (
            H200,
            BF16,
            {"dropout": 0.1},
            "efficient",
            "drops no attention weights, and model.dropout",
        ),
        (H200, BF16, {"head_dim": 8}, "efficient", "heads of at least 16, and model.head_dim is 8"),
        (H200, BF16, {"head_dim": 80}, "efficient", "because heads of 80, no power of two"),
        (H200, BF16, {"head_dim": 512}, "efficient", "heads of at most 256"),
        (H200, FP32, {}, "efficient", "take 16-bit numbers alone"),
        (T4, torch.float16, {}, "efficient", "flash needs compute capability 8.0"),
        (Machine("cpu"), BF16, {}, "auto", "there is no GPU"),
    ],
)
def test_prefixes_take_flex_where_it_takes_them(
    machine: Machine, dtype: torch.dtype, more: dict[str, Any], backend: str, told: str
) -> None:
    config = CONFIG.model_copy(update=more)
    for packs in (False, True):
        found = choose("auto", machine, config, dtype, packs_documents=packs, has_prefix=True)
        assert found.backend == backend
        assert told in str(found)


def kernels() -> tuple[torch.Tensor, set[str]]:
    torch.manual_seed(0)
    net, ids = build(CONFIG).eval(), token_ids(CONFIG, 2, 16)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as record:
        logits = net(ids).logits
    return logits, {event.key for event in record.key_averages() if "attention" in event.key}


def test_what_is_asked_for_is_taken() -> None:
    plain, fused = kernels()
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in fused
    use(choose("math", Machine("cpu"), CONFIG, FP32, packs_documents=False))
    logits, taken = kernels()
    assert "aten::_scaled_dot_product_attention_math" in taken
    assert not any("flash" in name for name in taken)
    assert relative_error(logits, plain) <= 1e-6


def test_a_choice_of_the_table_leaves_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    switched = {}
    for name in ("cudnn", "flash", "mem_efficient", "math"):
        monkeypatch.setattr(
            torch.backends.cuda,
            f"enable_{name}_sdp",
            lambda on, name=name: switched.__setitem__(name, on),
        )
    use(choose("auto", H200, CONFIG, BF16, packs_documents=False))
    assert all(switched.values())
    use(choose("auto", A100, CONFIG, BF16, packs_documents=False))
    assert switched == {"cudnn": False, "flash": True, "mem_efficient": True, "math": True}
    use(choose("cudnn", A100, CONFIG, BF16, packs_documents=False))
    assert switched == {"cudnn": True, "flash": False, "mem_efficient": False, "math": False}
    use(choose("flex", A100, CONFIG, BF16, packs_documents=False))
    # What generation with a cache runs on.
    assert switched == {"cudnn": False, "flash": True, "mem_efficient": True, "math": True}


def test_this_machine() -> None:
    assert attention_backends.Machine.here(torch.device("cpu")) == Machine("cpu")
