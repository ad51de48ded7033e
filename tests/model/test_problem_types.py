"""Numbers, sets of classes and choices: the same logits and losses as transformers."""

import json

import pytest
import torch
import torch.nn.functional as F

from model import build, load_pretrained, save_pretrained
from tests.model.shapes import (
    BIDIRECTIONAL,
    CAUSAL,
    FAMILIES,
    LM_HEAD,
    odd_config,
    odd_hf_config,
    relative_error,
    scramble,
    their_class,
    token_ids,
)
from tests.model.test_hf_parity import LIMIT, assert_same_gradients, padded

# problem_type, num_labels, labels of two texts
PROBLEMS = [
    ("regression", 1, torch.tensor([0.5, -3.25])),
    ("regression", 3, torch.tensor([[0.5, 2.0, -1.0], [4.5, 0.0, 1.0]])),
    ("multi_label_classification", 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])),
    ("single_label_classification", 3, torch.tensor([2, 0])),
]


def shape(family, seed, **more):
    pad = odd_config(family, seed).pad_token_id or 0
    return odd_config(family, seed).model_copy(update={"pad_token_id": pad, **more})


@pytest.mark.parametrize("seed", [0, 8])
@pytest.mark.parametrize(("problem", "n", "labels"), PROBLEMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_losses_equal_transformers(family, problem, n, labels, seed, tmp_path):
    config = shape(family, seed, num_labels=n, problem_type=problem)
    net = scramble(build(config, "sequence").eval())
    save_pretrained(net, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["problem_type"] == problem
    theirs = their_class(family, "sequence").from_pretrained(tmp_path / "m").eval()
    assert theirs.config.problem_type == problem
    ids, mask = padded(config, "right")
    ours, reference = net(ids, mask, labels=labels), theirs(ids, attention_mask=mask, labels=labels)
    assert ours.logits.shape == (2, n)
    assert relative_error(ours.logits, reference.logits) <= LIMIT
    assert relative_error(ours.loss, reference.loss) <= LIMIT
    ours.loss.backward()
    reference.loss.backward()
    assert_same_gradients(net, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_pretrained(tmp_path / "theirs", head="sequence")
    assert (again.config.predicts, again.config.num_labels) == (problem, n)
    assert relative_error(again(ids, mask, labels=labels).loss, ours.loss) <= LIMIT


def test_losses_are_those_of_torch_in_fp32():
    config = odd_config("bert", 3).model_copy(update={"num_labels": 1})
    net = scramble(build(config, "sequence").eval()).bfloat16()
    ids = token_ids(config, 4, 7)
    wanted = torch.tensor([0.0, 1.0, 2.5, 5.0])
    out = net(ids, labels=wanted)
    assert out.loss.dtype == torch.float32
    assert out.loss == F.mse_loss(out.logits[:, 0].float(), wanted)
    assert out.loss == net(ids, labels=wanted[:, None]).loss
    with pytest.raises(RuntimeError):  # never broadcast
        net(ids, labels=wanted[:1])


def test_a_head_for_something_else_forgets_what_the_file_predicted(tmp_path):
    config = shape("roberta", 1, num_labels=1, problem_type="regression")
    save_pretrained(build(config, "sequence"), tmp_path / "m")
    assert load_pretrained(tmp_path / "m", head="sequence").config.predicts == "regression"
    other = load_pretrained(tmp_path / "m", head="sequence", num_labels=4)
    assert other.config.predicts == "single_label_classification"
    assert other.newly_initialised == ["score.weight", "score.bias"]
    names = {0: "a", 1: "b"}
    named = load_pretrained(
        tmp_path / "m",
        head="sequence",
        id2label=names,
        problem_type="multi_label_classification",
    )
    assert (named.config.num_labels, named.config.id2label) == (2, names)
    assert named.config.predicts == "multi_label_classification"


def choices(config, side="right"):
    """Two questions with three choices each, of unequal length."""
    ids = token_ids(config, 6, 11)
    mask = torch.ones_like(ids)
    for row, length in enumerate((6, 11, 3, 8, 8, 11)):
        where = slice(length, 11) if side == "right" else slice(0, 11 - length)
        ids[row, where], mask[row, where] = config.pad_token_id, 0
    return ids.view(2, 3, 11), mask.view(2, 3, 11)


@pytest.mark.parametrize("seed", range(0, 20, 4))
@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_choices_equal_transformers(family, seed, tmp_path):
    config = shape(family, seed)
    net = scramble(build(config, "choice").eval())
    save_pretrained(net, tmp_path / "m")
    cls = their_class(family, "choice")
    theirs, info = cls.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.architectures == [cls.__name__]
    ids, mask = choices(config)
    labels, more = torch.tensor([2, 0]), {}
    if family != "modernbert":
        more = {"token_type_ids": torch.randint(0, config.type_vocab_size, ids.shape)}
    ours = net(ids, mask, labels=labels, **more)
    reference = theirs.eval()(ids, attention_mask=mask, labels=labels, **more)
    assert ours.logits.shape == (2, 3)
    assert relative_error(ours.logits, reference.logits) <= LIMIT
    assert relative_error(ours.loss, reference.loss) <= LIMIT
    ours.loss.backward()
    reference.loss.backward()
    assert_same_gradients(net, theirs)


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_their_choices_open_here(family, tmp_path):
    theirs = scramble(their_class(family, "choice")(odd_hf_config(family, 3)).eval())
    theirs.save_pretrained(tmp_path / "m")
    net = load_pretrained(tmp_path / "m", head="choice")
    assert net.newly_initialised == []
    ids = token_ids(net.config, 6, 9).view(2, 3, 9)
    mask = torch.ones_like(ids)
    assert relative_error(net(ids, mask).logits, theirs(ids, attention_mask=mask).logits) <= LIMIT


@pytest.mark.parametrize("unpads", [True, False])
@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_a_missing_choice_is_never_chosen_and_changes_nothing(family, unpads):
    config = shape(family, 4)
    net = scramble(build(config, "choice").eval())
    net.trunk.unpads = unpads
    ids, mask = choices(config)
    mask[1, 2] = 0
    labels = torch.tensor([2, 0])
    out = net(ids, mask, labels=labels)
    assert out.logits[1].softmax(-1)[2] == 0
    alone = net(ids[1:, :2], mask[1:, :2], labels=labels[1:])
    assert relative_error(out.logits[1, :2], alone.logits[0]) <= LIMIT
    both = (net(ids[:1], mask[:1], labels=labels[:1]).loss + alone.loss) / 2
    assert relative_error(out.loss, both) <= LIMIT
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("family", CAUSAL)
def test_causal_families_have_no_choices(family):
    with pytest.raises(ValueError, match=r"'choice', expected one of causal_lm, .*which family"):
        build(odd_config(family, 1), "choice")


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_choices_are_new_on_a_pretrained_trunk(family, tmp_path):
    net = scramble(build(odd_config(family, 2), LM_HEAD[family]).eval())
    save_pretrained(net, tmp_path / "m")
    tuned = load_pretrained(tmp_path / "m", head="choice")
    assert {"score.weight", "score.bias"} <= set(tuned.newly_initialised)
    assert not any(name.startswith("trunk") for name in tuned.newly_initialised)
    assert torch.equal(tuned.trunk.token_embedding.weight, net.trunk.token_embedding.weight)


def test_roberta_drops_out_once_before_a_choice():
    """Its classifier of texts drops out twice; with half of 400 numbers left, twice shows."""
    config = odd_config("roberta", 1).model_copy(update={"dropout": 0.5})
    seen = []
    for head in ("sequence", "choice"):
        net = build(config, head).train()
        net.pooler.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        ids = token_ids(config, 8, 5)
        net(ids if head == "sequence" else ids[None])
    zeros = [float((hidden == 0).float().mean()) for hidden in seen]
    assert zeros[0] > 0.3
    assert zeros[1] == 0
