import torch

from model import build
from model.config import ModelConfig
from pretrain.objectives import causal_lm, predicted_tokens, split, weighted


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(
        ModelConfig(family="llama", n_layers=1, n_heads=2, d_model=8, vocab_size=11, max_seq_len=16)
    )


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (6, 10), generator=generator)
    targets = torch.randint(0, 11, (6, 10), generator=generator)
    targets[1, 3:] = -100  # unequal counts: a mean of means would differ
    targets[4] = -100
    return {"input_ids": ids, "targets": targets}


def test_shares_of_micro_batches_add_up_to_the_global_mean_and_its_gradient() -> None:
    net, whole = tiny(), batch()
    expected = causal_lm(net, whole)
    (want,) = torch.autograd.grad(expected, net.trunk.token_embedding.weight)
    share = weighted("causal_lm", float(predicted_tokens(whole)))
    pieces = split(whole, 2, torch.device("cpu"))
    losses = [share(net, piece) for piece in pieces]
    assert torch.allclose(sum(losses), expected, rtol=1e-6)
    (got,) = torch.autograd.grad(sum(losses), net.trunk.token_embedding.weight)
    assert torch.allclose(got, want, atol=1e-7)
    means = torch.stack([causal_lm(net, piece) for piece in pieces]).mean()
    assert abs(float((means - expected).detach())) > 1e-3  # the mistake that this guards against


def test_a_micro_batch_without_targets_adds_nothing() -> None:
    empty = {"input_ids": torch.zeros(1, 4, dtype=torch.long), "targets": torch.full((1, 4), -100)}
    assert weighted("causal_lm", 10.0)(tiny(), empty).item() == 0.0


def test_split_cuts_document_boundaries_with_the_rows() -> None:
    whole = batch() | {"cu_seqlens": torch.tensor([0, 4, 10, 20, 30, 33, 40, 50, 60])}
    first, second, third = split(whole, 2, torch.device("cpu"))
    assert first["cu_seqlens"].tolist() == [0, 4, 10, 20]
    assert second["cu_seqlens"].tolist() == [0, 10, 13, 20]
    assert third["cu_seqlens"].tolist() == [0, 10, 20]
    assert torch.equal(second["input_ids"], whole["input_ids"][2:4])
