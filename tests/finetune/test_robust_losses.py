"""Losses and R-Drop against formulas written down again here, in numpy and plain torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from finetune.devices import plain
from finetune.robust.adversarial import repeated
from finetune.robust.config import Robust
from finetune.robust.losses import Criterion, divergence
from finetune.robust.objectives import class_weights
from model.task_heads import NO_CHOICE
from tests.finetune.robust_toys import FAMILIES, batch, network, number, objective


def by_hand(logits, labels, smoothing=0.0, gamma=0.0, weights=None):
    """Σ over counted rows of w-weighted smoothed cross entropy · (1 - p)^gamma ÷ their number."""
    weights = np.ones(logits.shape[-1]) if weights is None else weights
    total, counted = 0.0, 0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        if label == -100:
            continue
        p = np.exp(row - row.max())
        p /= p.sum()
        spread = np.full(len(row), smoothing / len(row))
        spread[label] += 1 - smoothing
        total += (1 - p[label]) ** gamma * -(spread * weights * np.log(p)).sum()
        counted += 1
    return total / counted


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_loss_of_classes(smoothing, gamma, weights):
    draw = np.random.default_rng(1)
    logits, labels = 3 * draw.normal(size=(7, 3)), np.array([0, 1, 2, -100, 1, 0, 2])
    given = None if weights is None else torch.tensor(weights)
    found = Criterion("classes", smoothing, gamma, given)(
        torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)
    )
    assert float(found) == pytest.approx(
        by_hand(logits, labels, smoothing, gamma, weights), abs=1e-6
    )


def test_loss_of_tokens_counts_as_torch_does():
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 5, 4), torch.tensor([[0, 1, -100, 3, 2], [-100, -100, 1, 1, 0]])
    expected = F.cross_entropy(logits.view(-1, 4), labels.view(-1), label_smoothing=0.2)
    assert float(Criterion("classes", 0.2)(logits, labels)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_nothing_counted_is_no_loss():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = Criterion("classes", gamma=2.0)(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().sum()) == 0


def test_loss_of_sets():
    draw = np.random.default_rng(2)
    z, y = 2 * draw.normal(size=(5, 4)), draw.integers(0, 2, (5, 4))
    weights, gamma, smoothing = np.array([1.0, 3.0, 0.5, 2.0]), 2.0, 0.2
    p = 1 / (1 + np.exp(-z))
    target = y * (1 - smoothing) + smoothing / 2
    right = np.where(y == 1, p, 1 - p)
    each = -(weights * target * np.log(p) + (1 - target) * np.log(1 - p)) * (1 - right) ** gamma
    found = Criterion("sets", smoothing, gamma, torch.tensor(weights, dtype=torch.float32))(
        torch.tensor(z, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    )
    assert float(found) == pytest.approx(each.mean(), abs=1e-6)


@pytest.mark.parametrize("logit", [0.0, 30.0, 200.0])
def test_focal_gradients_are_numbers_also_where_nothing_is_left_to_learn(logit):
    logits = torch.tensor([[logit, 0.0, 0.0]], requires_grad=True)
    Criterion("classes", gamma=0.5)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_balanced_weights_are_scikit_learn_s():
    labels = np.array([0] * 7 + [1] * 2 + [2] * 1)
    found = class_weights(Robust(balance_classes=True), "classes", ["a", "b", "c"], labels)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert np.allclose(found, expected, rtol=1e-6)
    assert float(found[torch.tensor(labels)].mean()) == pytest.approx(
        1
    )  # the rate stays what it is


def test_balanced_weights_leave_out_what_is_not_counted():
    labels = np.array([0, 0, 0, 2, -100, -100])
    found = class_weights(Robust(balance_classes=True), "classes", ["a", "b", "c"], labels)
    assert found.tolist() == pytest.approx([4 / (2 * 3), 1, 4 / (2 * 1)])


def test_balanced_weights_of_sets():
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=np.float32)
    found = class_weights(Robust(balance_classes=True), "sets", ["a", "b", "c"], labels)
    assert found.tolist() == pytest.approx([3, 3, 1])


def test_parts_of_a_batch_add_up_to_the_whole():
    """What accumulation and ranks need: a weighted mean over weights would not."""
    data = batch(6, labels=[0, 0, 0, 0, 1, 2])
    learn = objective(class_weights={"b": 5.0}, label_smoothing=0.1, focal_gamma=1.0)
    net = network()

    def loss(rows):
        part = {name: value[rows] for name, value in data.items()}
        return float(learn(net, net, part).detach())

    whole = loss(slice(None))
    assert loss(slice(0, 4)) * 4 / 6 + loss(slice(4, 6)) * 2 / 6 == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_criterion_is_the_model_s_own_loss(family):
    net, data = network(family), batch()
    own = net(**data)
    found = Criterion("classes")(own.logits, data["labels"])
    assert torch.allclose(found, own.loss, atol=1e-6)
    assert objective() is plain
    assert objective("instruct") is plain


# --- R-Drop ----------------------------------------------------------------------------------


def kl(p, q):
    return float((p * (np.log(p) - np.log(q))).sum())


def test_divergence_is_the_mean_of_both_kl():
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=(2, 4, 3))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    labels = torch.tensor([0, -100, 1, 2])
    expected = np.mean([(kl(p[i], q[i]) + kl(q[i], p[i])) / 2 for i in (0, 2, 3)])
    found = divergence(torch.tensor(a), torch.tensor(b), labels, "classes")
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_divergence_of_sets_is_that_of_coins():
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 1.0]])
    p, q = a.sigmoid().double().numpy()[0], b.sigmoid().double().numpy()[0]
    coins = [np.array([[x, 1 - x], [y, 1 - y]]) for x, y in zip(p, q, strict=True)]
    expected = np.mean([(kl(f, g) + kl(g, f)) / 2 for f, g in coins])
    found = divergence(a, b, torch.zeros(1, 2), "sets")
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_divergence_of_places_ignores_what_can_be_no_answer():
    both = torch.randn(2, 1, 5, 2, requires_grad=True)
    first, second = both
    hidden = torch.tensor([False, False, False, True, True])[None, :, None]
    cut = [x.masked_fill(hidden, -torch.inf) for x in (first, second)]
    labels = torch.zeros(1, 2, dtype=torch.long)
    found = divergence(*cut, labels, "places")
    short = divergence(first[:, :3], second[:, :3], labels, "places")
    assert torch.allclose(found, short, atol=1e-6)
    found.backward()
    assert torch.isfinite(both.grad).all()


def test_r_drop_is_both_losses_and_their_difference():
    net, data = network(dropout=0.3), batch()
    torch.manual_seed(5)
    found = number(objective(r_drop=2.0)(net, net, data))
    torch.manual_seed(5)
    logits = net(**{k: v for k, v in repeated(data, 2).items() if k != "labels"}).logits
    first, second = (x.detach().double().softmax(-1).numpy() for x in logits.chunk(2))
    labels = data["labels"].numpy()
    losses = [-np.log(p[np.arange(4), labels]).mean() for p in (first, second)]
    apart = np.mean([(kl(p, q) + kl(q, p)) / 2 for p, q in zip(first, second, strict=True)])
    assert apart > 1e-3
    assert found == pytest.approx(np.mean(losses) + 2 * apart, abs=1e-5)


def test_r_drop_without_dropout_is_the_plain_loss():
    net, data = network(), batch()
    assert number(objective(r_drop=2.0)(net, net, data)) == pytest.approx(
        number(net(**data).loss), abs=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_smoothing_leaves_choices_out_that_are_none(dtype):
    logits = torch.tensor([[1.0, -2.0, NO_CHOICE, NO_CHOICE]], dtype=dtype, requires_grad=True)
    loss = Criterion("classes", 0.1, has_gaps=True)(logits, torch.tensor([0]))
    expected = F.cross_entropy(logits[:, :2].float(), torch.tensor([0]), label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    loss.backward()
    assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-3)  # no push on all that is real
