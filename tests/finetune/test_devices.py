import itertools

import numpy as np
import pytest
import torch

from finetune.config import Optim
from finetune.devices import Replicas, resolve_precision, to_device
from model import build, preset
from runtime.dist import Ranks

CPU = Ranks(0, 0, 1, torch.device("cpu"))


def replicas(max_grad_norm=0.0):
    torch.manual_seed(0)
    config = preset("llama-tiny", n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64,
                    vocab_size=50, max_seq_len=32, pad_token_id=0, num_labels=3)  # fmt: skip
    return Replicas(
        build(config, "sequence"), Optim(lr=1e-3, max_grad_norm=max_grad_norm), CPU, "fp32"
    )


def texts(count, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(1, 50, draw.integers(1, 20)) for _ in range(count)], draw.integers(
        0, 3, count
    )


def batch(ids, labels):
    """Pads by hand, to the longest of these."""
    longest = max(map(len, ids))
    rows = [np.pad(i, (0, longest - len(i))) for i in ids]
    mask = [np.pad(np.ones(len(i), int), (0, longest - len(i))) for i in ids]
    return to_device(
        {"input_ids": np.array(rows), "attention_mask": np.array(mask), "labels": np.array(labels)},
        CPU.device,
    )


def gradients(reps):
    """The gradients that reach the optimizer."""
    found = []
    reps.optimizer.register_step_pre_hook(
        lambda *_: found.append([p.grad.clone() for p in reps.module.parameters()])
    )
    return found


@pytest.mark.parametrize(
    "cuts",
    [(4, 8, 12), (1, 2, 3, 10), (5, 5, 11), (4, 8)],
    ids=["equal", "unequal", "one-empty", "partial-last"],
)
def test_accumulated_gradients_are_those_of_one_big_batch(cuts):
    ids, labels = texts(11)
    whole, parts = replicas(), replicas()
    seen_whole, seen_parts = gradients(whole), gradients(parts)
    first = whole.train_step([(batch(ids, labels), 11)], 11, 1e-3)
    bounds = [0, *cuts, 11] if cuts[-1] < 11 else [0, *cuts[:-1], 11]
    micro = []
    for low, high in itertools.pairwise(bounds):
        if low == high:  # a rank that has nothing to do in a last, smaller step
            micro.append((batch(ids[:1], labels[:1]), 0))
        else:
            micro.append((batch(ids[low:high], labels[low:high]), high - low))
    second = parts.train_step(micro, 11, 1e-3)
    assert second.loss == pytest.approx(first.loss, abs=1e-6)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
    for a, b in zip(seen_whole[0], seen_parts[0], strict=True):
        assert (a - b).abs().max() <= 1e-6
    for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        assert (a - b).abs().max() <= 2e-5  # AdamW divides rounding noise by itself


def test_the_loss_is_the_mean_over_examples():
    ids, labels = texts(7)
    reps = replicas()
    with torch.no_grad():
        rows = [
            float(reps.module(**batch([i], [y])).loss) for i, y in zip(ids, labels, strict=True)
        ]
    micro = [(batch(ids[:6], labels[:6]), 6), (batch(ids[6:], labels[6:]), 1)]
    assert reps.train_step(micro, 7, 1e-3).loss == pytest.approx(np.mean(rows), abs=1e-6)


def test_gradients_are_clipped_to_the_norm():
    ids, labels = texts(8)
    clipped = replicas(max_grad_norm=0.01)
    seen = gradients(clipped)
    result = clipped.train_step([(batch(ids, labels), 8)], 8, 1e-3)
    assert result.grad_norm > 0.1  # before clipping
    total = torch.stack([g.norm() for g in seen[0]]).norm()
    assert float(total) == pytest.approx(0.01, rel=1e-3)


def test_each_step_starts_from_no_gradient():
    ids, labels = texts(8)
    reps = replicas()
    first = reps.train_step([(batch(ids, labels), 8)], 8, 0.0).grad_norm
    assert reps.train_step([(batch(ids, labels), 8)], 8, 0.0).grad_norm == pytest.approx(
        first, rel=1e-4
    )


def test_dropout_is_on_while_training():
    ids, labels = texts(4)
    reps = replicas()
    reps.module.eval()
    reps.train_step([(batch(ids, labels), 4)], 4, 1e-3)
    assert reps.module.training


def test_the_learning_rate_is_the_step_s_own():
    ids, labels = texts(4)
    reps = replicas()
    before = [p.detach().clone() for p in reps.module.parameters()]
    reps.train_step([(batch(ids, labels), 4)], 4, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, reps.module.parameters(), strict=True))


def test_bf16_runs_on_a_cpu():
    ids, labels = texts(4)
    torch.manual_seed(0)
    net = replicas().module
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    reps = Replicas(net, Optim(), CPU, "bf16")
    assert np.isfinite(reps.train_step([(batch(ids, labels), 4)], 4, 1e-3).loss)
    assert all(p.dtype == torch.float32 for p in reps.module.parameters())


def test_auto_precision_is_fp32_on_a_cpu():
    assert resolve_precision("auto", CPU.device) == "fp32"
    assert resolve_precision("bf16", CPU.device) == "bf16"
