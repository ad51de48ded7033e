"""Adapters against peft on transformers' own models, from the directories alone."""

import warnings

import orjson
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from finetune.adapters.config import Adapter, check_adapter, check_with_task
from finetune.adapters.directory import attach_to, open_adapter, write_adapter
from finetune.adapters.merge import merged
from finetune.robust.config import Robust
from finetune.tasks.config import TaskKeys
from model import load_pretrained, preset, save_pretrained
from model.attention import KVCache
from runtime.errors import UserError
from tests.finetune import toys

FAMILIES = ("gpt2", "llama", "qwen3", "bert", "roberta", "modernbert")
PAD = {"roberta": 1}  # whose positions are counted from it
METHODS = ("lora", "rslora", "dora", "ia3", "bitfit")
AUTO = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
    "causal_lm": transformers.AutoModelForCausalLM,
}


def adapted(directory, kind, family="modernbert", head="sequence", shape=None, **keys):
    """A model whose adapter has learned something, and the directory that it was written to."""
    base = toys.checkpoint(directory / "base", family=family, **(shape or {}))
    settings = {"num_labels": 3} if head in ("sequence", "token") else {}
    torch.manual_seed(5)
    net = load_pretrained(base, head=head, pad_token_id=PAD.get(family, 0), **settings)
    attach_to(net, Adapter(kind=kind, **keys), base)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                # rslora's scale is the root of the rank times as large: fp32 has as many digits.
                parameter.add_(torch.randn_like(parameter) * (0.1 if kind == "rslora" else 0.3))
    net.eval()
    out = directory / "adapter"
    out.mkdir()
    write_adapter(net, dict(net.named_parameters()), out, base)
    return net, out


def by_peft(directory, head, pad=0):
    """What peft and transformers make of the directory, all else left to them."""
    content = orjson.loads((directory / "adapter_config.json").read_bytes())
    settings = {"num_labels": 3} if head in ("sequence", "token") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AUTO[head].from_pretrained(
            content["base_model_name_or_path"],
            attn_implementation="eager",
            pad_token_id=pad,
            dtype=torch.float32,
            **settings,
        )
        return peft.PeftModel.from_pretrained(base, directory).eval()


def batch(*, padded=True, pad=0):
    torch.manual_seed(9)
    ids = torch.randint(2, 30, (3, 12))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 9:] = 0
        ids[1, 9:] = pad
    return {"input_ids": ids, "attention_mask": mask}


def logits_of_peft(model, inputs, head):
    with torch.no_grad():
        out = model(**inputs)
    if head == "span":
        return torch.stack((out.start_logits, out.end_logits), -1)
    return out.logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", METHODS)
def test_peft_opens_the_directory_and_says_the_same(tmp_path, kind, family):
    net, out = adapted(tmp_path, kind, family)
    pad = PAD.get(family, 0)
    inputs = batch(pad=pad)
    with torch.no_grad():
        ours = net(**inputs).logits
        plain = load_pretrained(tmp_path / "base", head="sequence", num_labels=3, pad_token_id=pad)
        plain.load_state_dict(
            {n: p for n, p in net.state_dict().items() if "trunk" not in n}, strict=False
        )
        untouched = plain(**inputs).logits
    assert (ours - untouched).abs().max() > 1e-3  # the adapter itself does something
    torch.testing.assert_close(
        logits_of_peft(by_peft(out, "sequence", pad), inputs, "sequence"),
        ours,
        atol=1e-5,
        rtol=1e-5,
    )
    again = open_adapter(out, "sequence")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, ours)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", METHODS)
def test_merged_logits_are_those_of_the_adapter(tmp_path, kind, family):
    net, out = adapted(tmp_path, kind, family)
    inputs = batch(pad=PAD.get(family, 0))
    with torch.no_grad():
        before = net(**inputs).logits
        whole = merged(net, out)
        torch.testing.assert_close(whole(**inputs).logits, before, atol=1e-5, rtol=1e-5)
    save_pretrained(whole, tmp_path / "merged")
    theirs = AUTO["sequence"].from_pretrained(tmp_path / "merged", attn_implementation="eager")
    with torch.no_grad():
        found = theirs.eval()(**inputs).logits
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "head"),
    [("gpt2", "causal_lm"), ("llama", "causal_lm"), ("modernbert", "token"), ("bert", "span")],
)
def test_other_heads(tmp_path, family, head):
    net, out = adapted(tmp_path, "lora", family, head)
    inputs = batch(padded=False)
    with torch.no_grad():
        ours = net(**inputs).logits
    found = logits_of_peft(by_peft(out, head), inputs, head)
    torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("gpt2", "causal_lm"),
        ("llama", "causal_lm"),
        ("bert", "sequence"),
        ("modernbert", "sequence"),
    ],
)
def test_virtual_tokens_as_embeddings(tmp_path, family, head):
    net, out = adapted(tmp_path, "prompt", family, head, virtual_tokens=4)
    inputs = batch(padded=head == "sequence")
    with torch.no_grad():
        ours = net(**inputs).logits
    found = logits_of_peft(by_peft(out, head), inputs, head)
    found = found[:, 4:] if head == "causal_lm" else found
    torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(open_adapter(out, head)(**inputs).logits, ours)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_virtual_tokens_in_every_layer(tmp_path, family):
    net, out = adapted(tmp_path, "prefix", family, "causal_lm", virtual_tokens=4)
    inputs = batch(padded=False)
    with torch.no_grad():
        ours = net(**inputs).logits
    found = logits_of_peft(by_peft(out, "causal_lm"), inputs, "causal_lm")
    torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_with_a_cache_and_with_padding(tmp_path, kind):
    net, _ = adapted(tmp_path, kind, "llama", "causal_lm", virtual_tokens=4)
    ids = batch(padded=False)["input_ids"]
    cache = KVCache(net.config, 3, 20, ids.device, torch.float32)
    with torch.no_grad():
        whole = net(ids).logits
        first = net(ids[:, :7], cache=cache).logits
        steps = [net(ids[:, i : i + 1], cache=cache).logits for i in range(7, 12)]
        mask = torch.ones_like(ids)
        mask[:, 9:] = 0
        padded = net(ids, attention_mask=mask).logits
    torch.testing.assert_close(torch.cat((first, *steps), 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[:, :9], whole[:, :9], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "head", "name"),
    [
        ("llama", "causal_lm", "labels"),
        ("llama", "causal_lm", "targets"),
        ("bert", "span", "labels"),
        ("bert", "token", "labels"),
    ],
)
def test_labels_move_with_the_virtual_tokens(tmp_path, family, head, name):
    """Against the logits of all tokens, which are those before the virtual ones' are taken away."""
    net, _ = adapted(tmp_path, "prompt", family, head, virtual_tokens=4)
    inputs = batch(padded=False)
    wanted = torch.tensor([[1, 3], [2, 2], [5, 7]]) if head == "span" else inputs["input_ids"] % 3
    with torch.no_grad():
        loss = net(**inputs, **{name: wanted}).loss
        net._forward_hooks.clear()
        whole = net(**inputs).logits
    if head == "span":
        pairs = [(whole[..., side], wanted[:, side] + 4) for side in (0, 1)]
    elif name == "labels" and head == "causal_lm":
        pairs = [(whole[:, 3:-1].flatten(0, 1), wanted.flatten())]
    else:
        pairs = [(whole[:, 4:].flatten(0, 1), wanted.flatten())]
    expected = sum(F.cross_entropy(*pair) for pair in pairs) / len(pairs)
    torch.testing.assert_close(loss, expected)


def test_what_virtual_tokens_leave_no_room_for_is_told(tmp_path):
    keys = {problem.key for problem in check_with_task(
        Adapter(kind="prompt"), TaskKeys(kind="instruct"), Robust(adversarial="fgm")
    )}  # fmt: skip
    assert keys == {"task.packing", "robust.adversarial"}
    found = check_adapter(Adapter(kind="ia3", rank=64), preset("llama-tiny"), "sequence", 32)
    assert [problem.key for problem in found] == ["adapter.rank"]


def test_houlsby_against_its_formula(tmp_path):
    net, out = adapted(tmp_path, "houlsby", "bert", rank=4)
    layer = net.trunk.blocks[0].mlp.down
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        y = x @ layer.inner.weight.T + layer.inner.bias
        w = {n: p for n, p in layer.named_parameters() if "houlsby" in n}
        z = y @ w["houlsby_down.weight"].T + w["houlsby_down.bias"]
        z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        expected = y + z @ w["houlsby_up.weight"].T + w["houlsby_up.bias"]
        torch.testing.assert_close(layer(x), expected)
        assert torch.equal(open_adapter(out, "sequence")(**batch()).logits, net(**batch()).logits)
    assert len([n for n, _ in net.named_parameters() if "houlsby_up.weight" in n]) == 4
    with pytest.raises(UserError, match="adds layers or tokens"):
        merged(net, out)


@pytest.mark.parametrize("kind", [*METHODS, "houlsby", "prompt"])
def test_a_fresh_adapter_changes_nothing_but_is_all_that_learns(tmp_path, kind):
    base = toys.checkpoint(tmp_path / "base", family="modernbert")
    net = load_pretrained(base, head="sequence", num_labels=3).train()
    before = {n: p.clone() for n, p in net.named_parameters()}
    inputs = batch()
    with torch.no_grad():
        plain = net(**inputs).logits
    attach_to(net, Adapter(kind=kind), base)
    if kind != "prompt":
        with torch.no_grad():
            torch.testing.assert_close(net(**inputs).logits, plain, atol=1e-6, rtol=1e-6)
    net(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    moved = {n for n, p in net.named_parameters() if p.grad is not None}
    assert moved == {n for n, p in net.named_parameters() if p.requires_grad}
    new = {n for n in moved if n not in before}
    assert new
    assert moved - new == {"score.weight", "score.bias"}


def test_head_of_another_checkpoint_is_trained_where_it_is_new(tmp_path):
    base = toys.checkpoint(tmp_path / "base", family="bert")  # a masked LM has no pooler
    net = load_pretrained(base, head="sequence", num_labels=3)
    attach_to(net, Adapter(kind="lora"), base)
    trained = {n for n, p in net.named_parameters() if p.requires_grad and "lora" not in n}
    assert trained == {"pooler.dense.weight", "pooler.dense.bias", "score.weight", "score.bias"}


def test_the_directory_holds_the_head_and_nothing_of_the_base(tmp_path):
    net, out = adapted(tmp_path, "lora", "bert")
    tensors = load_file(out / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.classifier.weight"], net.score.weight)
    assert torch.equal(tensors["base_model.model.bert.pooler.dense.bias"], net.pooler.dense.bias)
    assert all("lora_" in n or "classifier" in n or "pooler" in n for n in tensors)
    content = orjson.loads((out / "adapter_config.json").read_bytes())
    assert sorted(content["target_modules"]) == [
        *("attention.output.dense", "attention.self.key"),
        *("attention.self.query", "attention.self.value"),
    ]


def test_no_empty_directory_is_written(tmp_path):
    net, out = adapted(tmp_path, "lora")
    parameters = dict(net.named_parameters())
    name = next(n for n in parameters if "lora_B" in n)
    parameters[name] = torch.empty(0)  # what ZeRO-3 leaves of a parameter on one rank
    with pytest.raises(UserError, match="has no values to be saved"):
        write_adapter(net, parameters, out, tmp_path / "base")


def test_another_base_is_refused(tmp_path):
    _, out = adapted(tmp_path, "lora")
    save_pretrained(load_pretrained(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "base")
    with pytest.raises(UserError, match="whose files have changed"):
        open_adapter(out, "sequence")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="which is not there"):
        open_adapter(out, "sequence")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "houlsby", "prompt"])
def test_a_quantised_checkpoint_says_nearly_the_same(tmp_path, kind, bits):
    net, out = adapted(tmp_path, kind, shape={"d_model": 64, "d_ff": 128}, quantize=bits)
    maps = [m for m in net.trunk.blocks.modules() if isinstance(m, torch.nn.Linear)]
    packed = [m for m in maps if m.weight.dtype in (torch.int8, torch.uint8)]
    assert len(packed) == 2 * 4  # every map of both layers, and none of the adapter's
    inputs = batch()
    with torch.no_grad():
        ours = net(**inputs).logits
        again = open_adapter(out, "sequence")
        assert torch.equal(again(**inputs).logits, ours)
        whole = open_adapter(out, "sequence", quantized=False)(**inputs).logits
    error = (whole - ours).abs().mean() / whole.abs().mean()
    assert 0 < error < (0.25 if bits == "4bit" else 0.05)
    written = load_file(out / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in written.values())


def test_what_an_adapter_reads_waits_where_there_is_none():
    shape = preset("modernbert-tiny", vocab_size=30)
    assert list(check_adapter(Adapter(kind="none", rank=16), shape, "sequence", 16)) == []
    (problem,) = check_adapter(Adapter(kind="ia3", rank=16), shape, "sequence", 16)
    assert problem.key == "adapter.rank"
    language = TaskKeys(kind="language")
    (problem,) = check_with_task(Adapter(kind="prompt"), language, Robust())
    assert "lie in one" in problem.message
    assert not list(check_with_task(Adapter(kind="prefix"), language, Robust()))


def test_a_quantised_checkpoint_is_there_for_an_adapter_alone():
    shape = preset("modernbert-tiny", vocab_size=30)
    for kind, told in (("none", "the model's own weights are trained"), ("bitfit", "no layer")):
        (problem,) = check_adapter(Adapter(kind=kind, quantize="4bit"), shape, "sequence", 16)
        assert problem.key == "adapter.quantize"
        assert told in problem.message
    narrow = preset("modernbert-tiny", vocab_size=30, d_model=96, n_heads=3)
    (problem,) = check_adapter(Adapter(kind="lora", quantize="4bit"), narrow, "sequence", 16)
    assert "4bit takes widths that 64 divides" in problem.message
