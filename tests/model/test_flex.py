"""FlexAttention sees what masks see, and is compiled once; on a CPU without its fused kernel."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor
from torch._dynamo.utils import counters

from model import ModelConfig, build, flex
from model.attention import KVCache
from model.visibility import masked

CPU = torch.device("cpu")
ROWS, LENGTH = 2, 200  # two tiles, the second in part
SHAPE: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 64,
    "vocab_size": 61,
    "max_seq_len": 256,
}
CAUSAL = ModelConfig(family="llama", n_kv_heads=2, **SHAPE)
WINDOWS: dict[str, Any] = {"sliding_window": 24, "sliding_layers": (1,)}
MODELS = {
    "causal": CAUSAL,
    "window": ModelConfig(family="qwen3", n_kv_heads=1, **SHAPE, **WINDOWS),
    "both sides": ModelConfig(family="modernbert", **SHAPE, **WINDOWS, dropout=0.0),
}
KINDS = ("nothing", "padding", "documents", "prefix", "documents and prefix")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's operations in place of the kernel, whose gradients torch has on GPUs alone."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_compiled_alone", lambda function: function)
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's reading of it all, without its kernels."""
    monkeypatch.undo()
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    alone = cache(flex._compiled_alone.__wrapped__)  # compiles with what is set above
    monkeypatch.setattr(flex, "_compiled_alone", alone)


def known(kind: str, seed: int = 0) -> dict[str, Any]:
    """What a batch may say of its tokens, as the model takes it."""
    torch.manual_seed(seed)
    found: dict[str, Any] = {}
    if "documents" in kind:
        cuts = torch.randint(1, ROWS * LENGTH, (9,)).tolist()
        ends = sorted({0, LENGTH, ROWS * LENGTH, *cuts})
        found["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
    place = torch.arange(LENGTH)[None]
    if "prefix" in kind:
        found["prefix_mask"] = place % 100 < torch.randint(5, 100, (ROWS, 1))
    if "padding" in kind:
        lengths = torch.randint(20, LENGTH, (ROWS, 1))
        found["attention_mask"] = ((place < lengths) ^ torch.tensor([[False], [True]])).long()
    return found


def gradients(net: Any, ids: Tensor, given: dict[str, Any]) -> list[Tensor]:
    net.zero_grad()
    targets = torch.where(given.get("attention_mask", torch.ones_like(ids)) > 0, ids, -100)
    loss = net(ids, targets=targets, **given).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def new_net(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    config = MODELS[name]
    net = build(config, "causal_lm" if config.causal else "masked_lm").to(dtype)
    net.trunk.unpads = net.trunk.splits_documents = False
    return net


def worst(found: list[Tensor], want: list[Tensor]) -> float:
    assert len(found) == len(want)
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, want, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_losses_and_gradients_are_those_of_masks(
    name: str, kind: str, dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, ids = new_net(name, dtype), torch.randint(0, 61, (ROWS, LENGTH))
    given = known(kind) if name != "both sides" else known(kind.replace("prefix", "nothing"))
    want, taken = gradients(net, ids, given), []
    monkeypatch.setattr(flex, "_compiled_alone", lambda f: taken.append(f) or f)
    net.trunk.attends_flex = True
    assert worst(gradients(net, ids, given), want) <= most
    assert taken, "FlexAttention was not taken"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_left_out_are_those_without_anything_to_see(name: str, kind: str) -> None:
    """And tiles without a hidden pair are known as such."""
    config, given = MODELS[name], known(kind)
    documents = None
    if "cu_seqlens" in given:
        token = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
        documents = torch.searchsorted(given["cu_seqlens"].long(), token, right=True)
    arguments = {
        "attention_mask": given.get("attention_mask"),
        "documents": documents,
        "prefix": given.get("prefix_mask"),
    }
    tiles = flex.make_masks(config, LENGTH, CPU, **arguments)
    assert (tiles.local is None) == (not config.sliding_layers)
    for layer in range(2):
        window = config.window_of(layer)
        found = tiles.everywhere if window is None else tiles.local
        assert found is not None
        dense = masked(config, LENGTH, LENGTH, CPU, **arguments).mask_of(window)
        if dense is None:
            dense = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
            dense = dense.tril() if config.causal else dense
        blocks = torch.nn.functional.pad(dense, (0, 56, 0, 56)).unfold(2, 128, 128)
        seen = blocks.unfold(3, 128, 128).flatten(-2).sum(-1)  # (B, 1, 2, 2)
        assert torch.equal(found.to_dense() > 0, seen > 0)
        assert found.full_kv_num_blocks is not None
        full = (seen == 128 * 128).sum(-1)
        assert torch.equal(found.full_kv_num_blocks.long(), full)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("recompute", ["none", "block", "attention"])
def test_compiled_blocks_are_compiled_once(recompute: Any) -> None:
    """Whatever the documents and prefixes: one graph a kind of layer, and one a kind of mask."""
    net = new_net("window")
    batches = [(torch.randint(0, 61, (ROWS, LENGTH)), known(KINDS[-1], i)) for i in range(3)]
    want = [gradients(net, *batch) for batch in batches]
    net.trunk.attends_flex = True
    net.trunk.set_recompute(recompute)
    for block in net.trunk.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True)
    for batch, plain in zip(batches, want, strict=True):
        assert worst(gradients(net, *batch), plain) <= 1e-5
        assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced")
def test_without_compiled_blocks_it_is_compiled_once() -> None:
    net = new_net("window")
    net.trunk.attends_flex = True
    for seed in range(3):
        gradients(net, torch.randint(0, 61, (ROWS, LENGTH)), known(KINDS[-1], seed))
        assert counters["stats"]["unique_graphs"] == 4  # masks and attention, two kinds of each


def test_generation_and_dropout_keep_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled_alone", lambda _: pytest.fail("FlexAttention was taken"))
    net = new_net("causal").eval()
    net.trunk.attends_flex = True
    ids = torch.randint(0, 61, (ROWS, 8))
    with torch.no_grad():
        net(ids, cache=KVCache(CAUSAL, ROWS, 8, CPU, torch.float32))
    dropping = build(CAUSAL.model_copy(update={"dropout": 0.5})).train()
    dropping.trunk.attends_flex = True
    dropping(ids)


@pytest.mark.usefixtures("traced")
def test_a_machine_is_tried_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its numbers, not on whether it compiles alone."""
    asked = (CPU, CAUSAL, torch.bfloat16)
    assert flex.problem(*asked) is None
    plain = flex.create_block_mask

    def forgets(_: Any, *rest: Any) -> Any:
        return plain(lambda b, h, q, k: k <= q, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(flex, "create_block_mask", forgets)
        assert flex.problem(*asked) == "it computes wrong numbers"

    def fails(*_: Tensor) -> Tensor:
        raise RuntimeError("\nCannot find a working triton installation\nsee there")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", lambda _: fails)
        assert flex.problem(*asked) == "Cannot find a working triton installation"
