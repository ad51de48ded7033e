import pytest
import torch
import torch.nn.functional as F

from model import build
from model.config import ModelConfig
from model.kernels.linear_cross_entropy import reference
from tests.model.shapes import odd_config, relative_error, scramble, token_ids

FAMILIES = ["gpt2", "llama"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_targets_and_labels_give_one_loss(family, seed):
    net = scramble(build(odd_config(family, seed)))
    ids = token_ids(net.config, 2, 9)
    labels = ids.clone()
    labels[0, 3:6] = -100
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    by_labels, by_targets = net(ids, labels=labels), net(ids, targets=targets)
    assert by_targets.logits is None
    assert by_labels.logits.shape == (2, 9, net.config.vocab_size)
    assert relative_error(by_targets.loss, by_labels.loss) <= 1e-6
    expected = F.cross_entropy(by_labels.logits.flatten(0, 1), targets.flatten())
    assert relative_error(by_labels.loss, expected) <= 1e-6


def test_nothing_to_predict_is_zero_and_harmless():
    net = build(odd_config("gpt2", 1))
    ids = token_ids(net.config, 2, 5)
    for key in ("labels", "targets"):
        net.zero_grad()
        loss = net(ids, **{key: torch.full_like(ids, -100)}).loss
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_loss_is_fp32_even_from_bf16():
    hidden = torch.randn(6, 8, dtype=torch.bfloat16)
    weight = torch.randn(11, 8, dtype=torch.bfloat16)
    targets = torch.tensor([1, 2, -1, 4, -1, 10])
    loss = reference(hidden, weight, targets, ignore_index=-1)
    assert loss.dtype == torch.float32
    logits = (hidden @ weight.t()).float()
    kept = targets != -1
    assert torch.allclose(loss, F.cross_entropy(logits[kept], targets[kept]))


def test_labels_and_targets_exclude_each_other():
    net = build(odd_config("gpt2", 1))
    ids = token_ids(net.config, 1, 4)
    with pytest.raises(ValueError, match="got both"):
        net(ids, labels=ids, targets=ids)


def test_unknown_head_lists_the_known():
    with pytest.raises(ValueError, match=r"head: got 'x', expected one of causal_lm, masked_lm"):
        build("gpt2-tiny", head="x")
    with pytest.raises(ValueError, match=r"'masked_lm', expected one of causal_lm, seq.*gpt2"):
        build("gpt2-tiny", head="masked_lm")


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_output_is_the_embedding(family):
    config = odd_config(family, 1)
    tied = build(config.model_copy(update={"tie_embeddings": True}))
    untied = build(config.model_copy(update={"tie_embeddings": False}))
    assert tied.output_weight() is tied.trunk.token_embedding.weight
    assert untied.output_weight() is not untied.trunk.token_embedding.weight
    extra = config.vocab_size * config.d_model
    count = [sum(p.numel() for p in net.parameters()) for net in (tied, untied)]
    assert count[1] - count[0] == extra


def test_sequence_reads_the_last_token():
    config = odd_config("llama", 1).model_copy(update={"pad_token_id": None})
    net = scramble(build(config, "sequence").eval())
    ids = token_ids(config, 2, 8)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    both = net(ids, mask).logits
    assert relative_error(both[0], net(ids[:1, :5]).logits[0]) <= 1e-5
    assert relative_error(both[1], net(ids[1:]).logits[0]) <= 1e-5
    with pytest.raises(ValueError, match=r"set pad_token_id .* or pass attention_mask"):
        net(ids)


def test_one_output_is_a_number_and_no_class():
    config = odd_config("llama", 1).model_dump(exclude={"num_labels"})
    assert ModelConfig(**config, num_labels=1).predicts == "regression"
    assert ModelConfig(**config, num_labels=3).predicts == "single_label_classification"
    config["problem_type"] = "single_label_classification"
    with pytest.raises(ValueError, match="num_labels: got 1, expected 2 or more"):
        ModelConfig(**config, num_labels=1)


def test_few_large_tensors():
    """DeepSpeed's hooks cost per tensor: two matrices each in attention and MLP."""
    net = build("llama-tiny")
    per_layer = [n for n, _ in net.named_parameters() if n.startswith("trunk.blocks.0.")]
    assert len(per_layer) == 6
