"""What stays, what starts afresh and what learns how fast, on bare models of every family."""

import re

import pytest
import torch

from finetune.config import Optim
from finetune.transfer.config import Transfer, check_transfer
from finetune.transfer.layers import (
    depth,
    freeze,
    never_unfrozen,
    parameter_groups,
    start_afresh,
    unfreeze,
)
from model import build, preset
from model.hf.state import slots
from runtime.errors import UserError
from runtime.optim import build_optimizer

FAMILIES = ("gpt2", "llama", "qwen3", "bert", "roberta", "modernbert")
LAYERS = 3


def shape(family, **changes):
    values = {"n_layers": LAYERS, "d_model": 32, "n_heads": 2, "d_ff": 64, "vocab_size": 50,
              "max_seq_len": 40, "pad_token_id": 0, "num_labels": 3, "dropout": 0.0}  # fmt: skip
    if family in ("llama", "qwen3"):
        values["n_kv_heads"] = 1
    name = "roberta-base" if family == "roberta" else f"{family}-tiny"
    return preset(name, **{**values, **changes})


def model(family="llama", head="sequence", seed=0, **changes):
    torch.manual_seed(seed)
    return build(shape(family, **changes), head)


def layer_in_transformers(config, head, name):
    """What a parameter belongs to by the names that transformers gives it."""
    theirs = next(slot.theirs[0] for slot in slots(config, head) if slot.ours == name)
    found = re.search(r"\.(?:h|layers|layer)\.(\d+)\.", theirs)
    if found:
        return int(found[1])
    is_embedding = re.search(r"\.(?:wte|wpe|embed_tokens|embeddings)\.", theirs)
    return "embeddings" if is_embedding else "head"


def step(net, optimizer, seed=0):
    """One step on the labels of random texts."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (4, 9), generator=draw)
    labels = torch.randint(0, 3, (4,), generator=draw)
    net.train()
    net(ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def copied(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def changed(net, before):
    return {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_depths_are_the_layers_of_transformers(family):
    net = model(family)
    for name, _ in net.named_parameters():
        place = layer_in_transformers(net.config, "sequence", name)
        expected = {"embeddings": 0, "head": LAYERS + 1}.get(place, 0)
        expected = place + 1 if isinstance(place, int) else expected
        assert depth(name, LAYERS) == expected, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [None, 0, 1, LAYERS])
def test_partial_keeps_the_embeddings_and_the_first_layers_bit_for_bit(family, kept):
    net = model(family)
    transfer = Transfer(strategy="partial", freeze_layers=kept)
    freeze(net, transfer)
    before = copied(net)
    optim = Optim(lr=1e-2)
    optimizer = build_optimizer(parameter_groups(net, optim, transfer), optim)
    for number in range(3):
        step(net, optimizer, number)
    first = LAYERS // 2 if kept is None else kept
    stay = {
        name
        for name in before
        if (place := layer_in_transformers(net.config, "sequence", name)) == "embeddings"
        or (isinstance(place, int) and place < first)
    }
    # Nothing that stays has moved; all else has, but for vectors without a gradient in these texts.
    assert changed(net, before) == set(before) - stay


@pytest.mark.parametrize("family", FAMILIES)
def test_head_keeps_the_whole_trunk(family):
    net = model(family)
    transfer = Transfer(strategy="head")
    (note,) = freeze(net, transfer)
    trained = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("trunk."))
    assert f"{trained:,} of" in note
    before = copied(net)
    optim = Optim(lr=1e-2)
    step(net, build_optimizer(parameter_groups(net, optim, transfer), optim))
    assert changed(net, before) == {n for n in before if not n.startswith("trunk.")}


def test_nothing_left_to_train_is_told():
    net = model("llama", "causal_lm", tie_embeddings=True)
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(net, Transfer(strategy="head"))


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay_makes_each_layer_step_that_much_shorter(family):
    net = model(family)
    transfer = Transfer(layer_decay=0.5)
    optim = Optim(lr=1e-3, weight_decay=0.0, eps=1e-20)
    groups = parameter_groups(net, optim, transfer)
    optimizer = build_optimizer(groups, optim)
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group["lr_scale"]
    before = copied(net)
    step(net, optimizer)
    # Adam's first step moves every number that has a gradient by the rate, whatever the gradient.
    for name, parameter in net.named_parameters():
        place = layer_in_transformers(net.config, "sequence", name)
        below = {"embeddings": LAYERS + 1, "head": 0}.get(place)
        below = LAYERS - place if below is None else below
        moved = float((parameter.detach().double() - before[name].double()).abs().max())
        assert moved == pytest.approx(1e-3 * 0.5**below, rel=2e-3), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_of_depths_hold_every_parameter_once_with_its_decay(name):
    net = model("llama", mup_base_width=16, tie_embeddings=False)
    optim = Optim(name=name, weight_decay=0.1)
    plain = parameter_groups(net, optim, Transfer())
    split = parameter_groups(net, optim, Transfer(layer_decay=0.5))
    keys = ("weight_decay", "lr_scale", "splits")

    def by_parameter(groups):
        return {
            id(p): [g.get("splits", [None] * len(g["params"]))[i], *(g[k] for k in keys[:2])]
            for g in groups
            for i, p in enumerate(g["params"])
        }

    assert sum(len(g["params"]) for g in split) == len(list(net.parameters()))
    one, other = by_parameter(plain), by_parameter(split)
    assert one.keys() == other.keys()
    for number, (rows, decay, scale) in one.items():
        assert other[number][:2] == [rows, decay]
        assert other[number][2] <= scale
    top = [p for n, p in net.named_parameters() if n.startswith("trunk.blocks.2.")]
    for parameter in top:  # muP's factor stays
        assert other[id(parameter)][2] == one[id(parameter)][2] * 0.5


def test_layers_learn_when_their_time_has_come():
    net = model()
    transfer = Transfer(unfreeze_every_steps=2)
    optim = Optim(lr=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(parameter_groups(net, optim, transfer), optim)
    reached = []
    for number in range(10):
        before = copied(net)
        unfreeze(optimizer.param_groups, number)
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * group["lr_scale"]
        step(net, optimizer, number)
        moved = changed(net, before)
        depths = {depth(n, LAYERS) for n in before}
        whole = {d for d in depths if all(n in moved for n in before if depth(n, LAYERS) == d)}
        assert {depth(n, LAYERS) for n in moved} == whole
        reached.append(min(whole))
    assert reached == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]


def test_first_steps_of_an_unfrozen_layer_are_of_the_right_size():
    """Moments that were zero until then would make them several times too long."""
    net = model()
    transfer = Transfer(unfreeze_every_steps=60)
    optim = Optim(lr=1e-3, betas=(0.5, 0.99), weight_decay=0.0)
    optimizer = build_optimizer(parameter_groups(net, optim, transfer), optim)
    for number in range(61):
        before = copied(net)
        unfreeze(optimizer.param_groups, number)
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * group["lr_scale"]
        step(net, optimizer, number)
    matrix = "trunk.blocks.2.mlp.down.weight"
    moved = (dict(net.named_parameters())[matrix].detach() - before[matrix]).abs()
    assert 0 < float(moved.mean()) < 1.01e-3


def test_a_run_too_short_to_unfreeze_is_told():
    transfer = Transfer(unfreeze_every_steps=10)
    # Three layers: groups begin at steps 0, 10, 20, 30 and, the embeddings, 40.
    assert never_unfrozen(transfer, 3, 41) is None
    assert "lowest 1 of the layers" in never_unfrozen(transfer, 3, 40)
    assert "lowest 2 of the layers" in never_unfrozen(transfer, 3, 30)
    assert "write 9 or less" in never_unfrozen(transfer, 3, 40)
    assert never_unfrozen(Transfer(unfreeze_every_steps=9), 3, 40) is None
    # Of a model whose first layer stays, step 20 is the last that matters.
    kept = Transfer(strategy="partial", freeze_layers=1, unfreeze_every_steps=10)
    assert never_unfrozen(kept, 3, 21) is None
    assert "lowest 1 " in never_unfrozen(kept, 3, 20)
    assert never_unfrozen(Transfer(), 3, 1) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_draws_every_weight_anew(family):
    net = model(family)
    before = copied(net)
    torch.manual_seed(7)
    start_afresh(net, Transfer(strategy="architecture"))
    fresh = model(family, seed=7)
    moved = changed(net, before)
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, dict(net.named_parameters())[name]), name
        assert name in moved or before[name].unique().numel() == 1, name  # zeros, ones


@pytest.mark.parametrize("family", FAMILIES)
def test_reinit_touches_the_top_layers_and_the_pooler_alone(family):
    net = model(family)
    with torch.no_grad():
        for parameter in net.parameters():  # so that norms and biases differ from fresh ones, too
            parameter.add_(0.1)
    before = copied(net)
    (note,) = start_afresh(net, Transfer(reinit_layers=2))
    assert "top 2 of 3 layers" in note
    tops = {n for n in before if layer_in_transformers(net.config, "sequence", n) in (1, 2)}
    assert changed(net, before) == tops | {n for n in before if n.startswith("pooler.")}
    weight = net.trunk.blocks[2].mlp.down.weight
    assert abs(float(weight.detach().mean())) < 0.01  # 0.1 is gone


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"freeze_layers": 1}, "freeze_layers", "is of transfer.strategy: partial"),
        ({"strategy": "partial", "freeze_layers": 4}, "freeze_layers", "write 3 or less"),
        ({"reinit_layers": 4}, "reinit_layers", "write 3 or less"),
        (
            {"strategy": "partial", "freeze_layers": 2, "reinit_layers": 2},
            "reinit_layers",
            "write 1 or less",
        ),
        ({"strategy": "head", "reinit_layers": 1}, "reinit_layers", "trains no layer"),
        ({"strategy": "architecture", "reinit_layers": 1}, "reinit_layers", "fresh weights"),
        ({"strategy": "auto", "reinit_layers": 1}, "reinit_layers", "chooses the layers"),
        ({"strategy": "auto", "unfreeze_every_steps": 5}, "unfreeze_every_steps", "chooses"),
        ({"reference": "shards"}, "reference", "is of transfer.strategy: auto"),
        ({"strategy": "auto", "reference": "nowhere"}, "reference", "no such file"),
        ({"strategy": "head", "unfreeze_every_steps": 5}, "unfreeze_every_steps", "no layer"),
        ({"strategy": "head", "layer_decay": 0.9}, "layer_decay", "trains no layer"),
    ],
)
def test_settings_that_do_not_go_together(values, key, words):
    (problem,) = check_transfer(Transfer(**values), shape("llama"), "sequence")
    assert problem.key == f"transfer.{key}"
    assert words in problem.message


def test_settings_that_do_go_together():
    good = [
        *({}, {"strategy": "head"}, {"strategy": "partial"}, {"strategy": "auto"}),
        {"strategy": "partial", "freeze_layers": 2, "reinit_layers": 1, "layer_decay": 0.8},
        {"strategy": "partial", "unfreeze_every_steps": 3},
        {"reinit_layers": 3, "unfreeze_every_steps": 3, "layer_decay": 0.8},
    ]
    for values in good:
        assert not list(check_transfer(Transfer(**values), shape("llama"), "sequence"))
    (problem,) = check_transfer(
        Transfer(strategy="head"), shape("llama", tie_embeddings=True), "causal_lm"
    )
    assert "leaves nothing to train" in problem.message
