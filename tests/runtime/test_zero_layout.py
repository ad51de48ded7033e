"""What is loaded where all ranks hold all of it (stage 0), also where it does not divide."""

from types import SimpleNamespace

import pytest
import torch

from runtime import zero_layout
from runtime.dist import Ranks


@pytest.mark.parametrize("rank", range(3))
def test_every_rank_loads_all_of_a_parameter_smaller_than_the_ranks(rank: int) -> None:
    """Of a bias of two numbers the third rank answers for none, and holds it all the same."""
    net = torch.nn.Linear(8, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    engine = SimpleNamespace(module=net, optimizer=optimizer)
    ranks = Ranks(rank, rank, 3, torch.device("cpu"))

    def read(name: str, key: str, start: int, numel: int) -> torch.Tensor:
        return torch.arange(start, start + numel) + len(name) + len(key)

    with torch.no_grad():
        zero_layout._load_slices(engine, 0, ranks, read, 4)
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        assert state["step"] == 4
        for key, tensor in (
            (zero_layout.MASTER, parameter),
            ("exp_avg", state["exp_avg"]),
            ("exp_avg_sq", state["exp_avg_sq"]),
        ):
            expected = torch.arange(parameter.numel()) + len(name) + len(key)
            assert torch.equal(tensor.detach().flatten(), expected.float()), (name, key)
