"""FlexAttention on a GPU in bf16: no further from fp32 than attention under masks."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from model import flex, preset
from tests.model.test_flex import KINDS, LENGTH, ROWS, known, new_net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def gradients(net: Any, ids: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    net.zero_grad()
    net(ids, targets=ids, **given).loss.backward()
    return torch.cat([p.grad.float().flatten() for p in net.parameters() if p.grad is not None])


def test_this_machine_is_fit_for_it() -> None:
    device = torch.device("cuda")
    for name in ("llama-tiny", "llama-8b"):
        assert flex.problem(device, preset(name), torch.bfloat16) is None


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["causal", "window"])
def test_gradients_are_those_of_masks(name: str, kind: str, compiled: bool) -> None:
    """Of several batches, for which nothing is compiled again; rotated keys in bf16 in both."""
    torch._dynamo.reset()
    net = new_net(name).cuda()
    net.trunk.attends_varlen = False
    ids = torch.randint(0, 61, (ROWS, LENGTH), device="cuda")
    batches = [{key: t.cuda() for key, t in known(kind, seed).items()} for seed in range(3)]
    exact = [gradients(net, ids, given) for given in batches]
    net.bfloat16()
    plain = [gradients(net, ids, given) for given in batches]
    net.trunk.attends_flex = True
    for block in net.trunk.blocks if compiled else ():
        block.forward = torch.compile(block.forward, fullgraph=True)
    graphs = []
    for given, want, eager in zip(batches, exact, plain, strict=True):
        found = gradients(net, ids, given)
        error, of_masks = ((t - want).norm() / want.norm() for t in (found, eager))
        assert error <= 1.25 * of_masks + 1e-3, (float(error), float(of_masks))
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1, graphs
