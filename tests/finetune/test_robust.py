"""Adversarial training, mixup, and the config, on models of two layers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.robust.adversarial import Ascent, find_moves, moved, token_embedding
from finetune.robust.config import KINDS, Augment, Robust, check_classes, check_robust
from finetune.robust.losses import Criterion
from tests.finetune.robust_toys import FAMILIES, batch, network, number, objective

# --- adversarial -----------------------------------------------------------------------------


def plain(net, data):
    return net(**data).loss


def reference_gradient(net, data, move):
    """Row by row, without padding: of an embedding table that holds each token of the row once."""
    found = torch.zeros_like(move)
    for row in range(len(move)):
        length = int(data["attention_mask"][row].sum())
        table = net.trunk.token_embedding
        rows = (table.weight[data["input_ids"][row, :length]] + move[row, :length]).detach()
        kept, table.weight = table.weight, torch.nn.Parameter(rows)
        ids = torch.arange(length)[None]
        label = data["labels"][row : row + 1]
        loss = net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=label).loss
        (found[row, :length],) = torch.autograd.grad(loss, table.weight)
        table.weight = kept
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_fgm_moves_along_the_gradient(family):
    # Without a padding token: the reference numbers its tokens from 0.
    net, data = network(family, pad_token_id=None), batch()
    clean, move = find_moves(Ascent("fgm", 0.1), plain, net, data)
    gradient = reference_gradient(net, data, torch.zeros_like(move))
    embedded = net.trunk.token_embedding(data["input_ids"]).detach()
    embedded = embedded * data["attention_mask"][..., None]
    for row in range(len(move)):
        expected = 0.1 * embedded[row].norm() * gradient[row] / gradient[row].norm()
        assert torch.allclose(move[row], expected, atol=1e-4 * float(expected.abs().max()) + 1e-7)
    assert not clean.any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_what_is_learned_is_half_clean_and_half_moved(family, kind):
    net, data = network(family), batch()
    _, move = find_moves(Ascent(kind, 0.1, 3, 0.4), plain, net, data)
    with moved(net, data, move):
        worse = number(net(**data).loss)
    clean = number(net(**data).loss)
    assert worse > clean + 1e-4
    keys = {"adversarial": kind, "epsilon": 0.1, "ascent_steps": 3, "step_size": 0.4}
    assert number(objective(**keys)(net, net, data)) == pytest.approx((worse + clean) / 2, abs=1e-5)
    assert number(net(**data).loss) == clean  # no hook stays


def test_more_steps_find_worse_places():
    net, data = network(), batch()
    losses = []
    for kind, steps in (("fgm", 1), ("pgd", 8)):
        moves = find_moves(Ascent(kind, 0.5, steps, 0.4), plain, net, data)
        with moved(net, data, moves[-1]):
            losses.append(number(net(**data).loss))
    assert losses[1] > losses[0]


@pytest.mark.parametrize("kind", ["pgd", "freelb"])
def test_moves_stay_within_epsilon_and_off_the_padding(kind):
    net, data = network(), batch()
    moves = find_moves(Ascent(kind, 0.2, 5, 0.9), plain, net, data)
    embedded = net.trunk.token_embedding(data["input_ids"]) * data["attention_mask"][..., None]
    greatest = 0.2 * embedded.flatten(1).norm(dim=1)
    for move in moves:
        assert (move.flatten(1).norm(dim=1) <= greatest * (1 + 1e-5)).all()
        assert not move[data["attention_mask"] == 0].any()
    assert torch.allclose(moves[-1].flatten(1).norm(dim=1), greatest, rtol=1e-4)


def test_freelb_learns_from_every_place_on_its_way():
    net, data = network(), batch()
    torch.manual_seed(6)
    moves = find_moves(Ascent("freelb", 0.2, 3, 0.4), plain, net, data)
    assert len(moves) == 3
    assert moves[0].any()
    losses = []
    for move in moves:
        with moved(net, data, move):
            losses.append(number(net(**data).loss))
    assert losses[0] < losses[1] < losses[2]
    torch.manual_seed(6)
    learn = objective(adversarial="freelb", epsilon=0.2, ascent_steps=3, step_size=0.4)
    assert number(learn(net, net, data)) == pytest.approx(np.mean(losses), abs=1e-5)


def test_looking_ahead_leaves_no_gradient():
    net, data = network(), batch()
    find_moves(Ascent("pgd", 0.1, 2), plain, net, data)
    assert all(p.grad is None for p in net.parameters())


def test_a_text_with_nothing_to_gain_stays_where_it_is():
    net, data = network(head="token"), batch()
    data["labels"] = torch.where(data["attention_mask"] == 1, 1, -100)
    data["labels"][2] = -100
    _, move = find_moves(Ascent("fgm", 0.1), plain, net, data)
    assert not move[2].any()
    assert move[0].any()


@pytest.mark.parametrize(("head", "kind"), [("token", "token"), ("span", "span")])
@pytest.mark.parametrize(
    "keys", [{"adversarial": "fgm"}, {"adversarial": "freelb"}, {"r_drop": 1.0}]
)
def test_other_heads_learn_so_too(head, kind, keys):
    net, data = network(head=head, dropout=0.1), batch(longest=8)
    if head == "token":
        data["labels"] = torch.where(data["attention_mask"] == 1, data["input_ids"] % 3, -100)
    else:
        data["labels"] = torch.tensor([[0, 1], [1, 1], [0, 1], [1, 1]])
    loss = objective(kind, **keys)(net, net, data)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert float(loss.detach()) > 0


def test_a_wrapped_model_of_transformers_has_a_table_too():
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = torch.nn.Sequential()
    inner = BertForSequenceClassification(BertConfig(vocab_size=50, intermediate_size=64, **shape))
    net.add_module("inner", inner)
    assert token_embedding(net) is inner.bert.embeddings.word_embeddings
    with pytest.raises(TypeError, match="no table of tokens"):
        token_embedding(torch.nn.Linear(2, 2))


# --- mixup -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_mixup_mixes_what_the_last_layer_reads(family):
    net, data = network(family), batch()
    seen = []
    handle = net.score.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
    torch.manual_seed(7)
    loss = number(objective(mixup=0.5)(net, net, data))
    plain(net, data)
    handle.remove()
    torch.manual_seed(7)
    order, share = torch.randperm(4), float(torch.distributions.Beta(0.5, 0.5).sample())
    mixed, clean = (x.detach() for x in seen)
    assert 0.01 < share < 0.99
    assert torch.allclose(mixed, share * clean + (1 - share) * clean[order], atol=1e-6)
    logits = net.score(mixed).detach()
    targets = F.one_hot(data["labels"], 3).float()
    targets = share * targets + (1 - share) * targets[order]
    assert loss == pytest.approx(float(F.cross_entropy(logits, targets)), abs=1e-5)


def test_mixup_of_numbers_is_that_of_their_squares():
    z, a, b, share = torch.randn(4, requires_grad=True), torch.randn(4), torch.randn(4), 0.3
    criterion = Criterion("numbers")
    both = share * criterion(z[:, None], a) + (1 - share) * criterion(z[:, None], b)
    (found,) = torch.autograd.grad(both, z)
    (expected,) = torch.autograd.grad(F.mse_loss(z, share * a + (1 - share) * b), z)
    assert torch.allclose(found, expected, atol=1e-6)


# --- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"adversarial": "fgm"},
        {"adversarial": "pgd", "ascent_steps": 2},
        {"adversarial": "freelb", "ascent_steps": 2},
        {"r_drop": 1.0},
        {"mixup": 0.2},
        {"label_smoothing": 0.1},
        {"focal_gamma": 2.0},
        {"balance_classes": True, "adversarial": "fgm", "label_smoothing": 0.1},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_it_trains(keys):
    net, data = network(dropout=0.1), batch(12, seed=3)
    learn = objective(**keys)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    before = float(plain(net.eval(), data).detach())
    for _ in range(25):
        net.train()
        learn(net, net, data).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(plain(net.eval(), data).detach()) < before / 2


# --- the config ------------------------------------------------------------------------------


def test_class_names_are_text_and_weights_positive():
    assert Robust(class_weights={7: 2, True: 0.5}).class_weights == {"7": 2.0, "true": 0.5}
    with pytest.raises(ValueError, match=r"class 'a' weighs -1\.0; write a number above 0"):
        Robust(class_weights={"a": -1})
    with pytest.raises(ValueError, match="less than 1"):
        Robust(label_smoothing=1)


@pytest.mark.parametrize("name", list(KINDS))
def test_keys_are_refused_for_other_kinds(name):
    part, _, last = name.partition(".")
    values = {"adversarial": "fgm", "balance_classes": True, "class_weights": {"a": 2.0}}
    keys = {part: Augment(**{last: 0.1})} if last else {name: values.get(name, 0.5)}
    robust = Robust(**keys)
    assert list(check_robust(robust, "classification")) == []
    (problem,) = check_robust(robust, "instruct")
    assert problem.key == f"robust.{name}"
    assert "is not for task.kind: instruct, but for classification" in problem.message


def test_what_does_not_go_together():
    (problem,) = check_robust(Robust(r_drop=1.0, adversarial="pgd"), "classification")
    assert problem.key == "robust.r_drop"
    assert problem.message.startswith("does not go together with robust.adversarial; choose")
    (problem,) = check_robust(Robust(balance_classes=True, class_weights={"a": 2.0}), "token")
    assert problem.key == "robust.class_weights"
    (problem,) = check_classes(Robust(class_weights={"x": 2.0, "a": 1.0}), ["a", "b"])
    assert problem.message == "train has no class 'x'; its classes are a, b"
