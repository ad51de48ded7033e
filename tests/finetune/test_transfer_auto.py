"""What auto measures, against independent formulas and transformers, and what it makes of it."""

import json
import math
import random

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from data_prep.config import DataPrepConfig
from data_prep.pipeline import prepare
from finetune.transfer import similarity
from finetune.transfer.advice import advise, decided
from finetune.transfer.config import Transfer
from finetune.transfer.similarity import Measured, jensen_shannon, measure, unigram_loss
from model import build, load_pretrained, preset, save_pretrained
from runtime.config import load
from runtime.errors import UserError
from tests.finetune.test_train import stop_after
from tests.finetune.toys import (
    END,
    WORDS,
    animal_texts,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    word_tokenizer,
    write_jsonl,
)
from tests.processes import run

MASK = "[MASK]"
KNOWN = Measured(500, 0.0, 5.0, 3.0, 3.5, 0.4, 0.1)  # 40 % of the unigram loss is saved


def with_mask():
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens([MASK])
    return tokenizer


def counting_texts(count, seed=0):
    """Words in their order, from any: whoever knows it, knows each word after the first."""
    draw = random.Random(seed)
    starts = [draw.randrange(30) for _ in range(count)]
    return [" ".join(WORDS[(start + i) % 30] for i in range(12)) for start in starts]


def taught(directory):
    """A checkpoint that has read texts of counting_texts."""
    checkpoint(directory)
    net = load_pretrained(directory).float().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    vocab = word_tokenizer().get_vocab()
    ids = torch.tensor([[vocab[w] for w in text.split()] for text in counting_texts(200)])
    for step in range(60):
        part = ids[(step * 20) % 200 :][:20]
        net(part, labels=part).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_pretrained(net.eval(), directory)
    return directory


def task_files(directory, texts):
    """A task on texts with made-up labels."""
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(texts)]
    for name in ("train", "dev", "test"):
        write_jsonl(directory / f"{name}.jsonl", rows)


def test_jensen_shannon_is_scipy_s():
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 9, 200), draw.integers(0, 9, 200)
    assert jensen_shannon(one, other) == pytest.approx(jensenshannon(one, other, base=2) ** 2)
    assert jensen_shannon(one, 3 * one) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(np.array([3, 0]), np.array([0, 5])) == pytest.approx(1)


def test_unigram_loss_is_the_entropy_also_of_few_tokens():
    draw = np.random.default_rng(0)
    shares = draw.dirichlet(np.ones(50))
    truth = entropy(shares)
    few = [draw.multinomial(300, shares) for _ in range(200)]
    plain = np.mean([entropy(counts) for counts in few])
    found = np.mean([unigram_loss(counts) for counts in few])
    assert abs(found - truth) < 0.25 * abs(plain - truth)
    many = np.round(1e9 * shares).astype(np.int64)
    assert unigram_loss(many) == pytest.approx(truth, abs=1e-6)


def test_a_causal_checkpoint_s_own_loss_is_transformers(tmp_path):
    base = checkpoint(tmp_path / "base", family="gpt2")
    texts = [row["text"] for row in animal_texts(40)]
    found = measure(base, texts, 32)
    theirs = AutoModelForCausalLM.from_pretrained(base)
    total = counted = 0.0
    vocab = word_tokenizer().get_vocab()
    for text in texts:
        ids = torch.tensor([[vocab[word] for word in text.split()]])
        with torch.no_grad():
            loss = float(theirs(ids, labels=ids).loss)
        total, counted = total + loss * (ids.shape[1] - 1), counted + ids.shape[1] - 1
    assert found.own_loss == pytest.approx(total / counted, abs=1e-5)
    assert found.explained == pytest.approx(1 - found.own_loss / found.unigram_loss)
    assert (found.examples, found.unknown) == (40, 0)
    assert found.valid_loss is found.divergence is None


def test_a_masked_checkpoint_s_own_loss_is_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "_MASKED", 1.1)  # every token, so that no draw matters
    tokenizer = with_mask()
    base = checkpoint(tmp_path / "base", tokenizer, family="bert")
    (base / "tokenizer_config.json").write_text(json.dumps({"mask_token": MASK, "pad_token": END}))
    texts = [row["text"] for row in animal_texts(20)]
    theirs = AutoModelForMaskedLM.from_pretrained(base)
    total = counted = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        hidden = torch.full_like(ids, tokenizer.token_to_id(MASK))
        with torch.no_grad():
            loss = float(theirs(hidden, labels=ids).loss)
        total, counted = total + loss * ids.shape[1], counted + ids.shape[1]
    assert measure(base, texts, 32).own_loss == pytest.approx(total / counted, abs=1e-5)


def test_a_share_of_the_tokens_is_hidden_the_same_ones_every_time(tmp_path):
    base = checkpoint(tmp_path / "base", with_mask(), family="bert")
    texts = [row["text"] for row in animal_texts(100)]
    found = [measure(base, texts, 32).own_loss for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(math.log(39), abs=0.2)  # an untrained model guesses


def test_unknown_tokens_are_counted(tmp_path):
    base = checkpoint(tmp_path / "base")
    assert measure(base, ["w0 nie w1 gesehen", "w2 w3 w4 w5"], 32).unknown == pytest.approx(2 / 8)


def test_the_validation_loss_is_that_of_the_checkpoint_s_step(tmp_path):
    run_dir = tmp_path / "pretrain"
    step = run_dir / "checkpoints" / "step_00000020"
    step.parent.mkdir(parents=True)
    checkpoint(step)
    (step / "training").mkdir()
    state = {"step": 20, "config": {"objective": "causal_lm", "data": {"train": []}}}
    (step / "training" / "state.json").write_text(json.dumps(state))
    lines = [{"step": 10, "valid_loss": 4.0}, {"step": 20, "valid_loss": 3.5},
             {"step": 20, "loss": 3.0}, {"step": 30, "valid_loss": 3.25}]  # fmt: skip
    write_jsonl(run_dir / "metrics.jsonl", lines)
    texts = ["w0 w1 w2", "w3 w4"]
    assert measure(step, texts, 32).valid_loss == 3.5
    # A fine-tuning run's losses are of another kind.
    del state["config"]["objective"]
    (step / "training" / "state.json").write_text(json.dumps(state))
    assert measure(step, texts, 32).valid_loss is None


def test_vocabularies_are_compared_with_shards_or_a_text(tmp_path):
    base = checkpoint(tmp_path / "base")
    text = tmp_path / "pretrained-on.txt"
    rows = [row["text"] for row in animal_texts(300, seed=5)]
    text.write_text("\n".join(rows))
    settings = {"input": {"paths": [str(text)], "document": "line"}, "workers": 1,
                "output": str(tmp_path / "shards"), "split": {"valid": 0.0},
                "tokenizer": {"path": str(base / "tokenizer.json")}}  # fmt: skip
    config = tmp_path / "prepare.yaml"
    config.write_text(json.dumps(settings))
    prepare(load(DataPrepConfig, config))
    vocab = sorted(word_tokenizer().get_vocab())
    own = [row["text"] for row in animal_texts(50, seed=6)]
    expected = jensenshannon(*(_frequencies(texts, vocab) for texts in (own, rows)), base=2) ** 2
    for reference in (text, tmp_path / "shards"):
        found = measure(base, own, 32, str(reference))
        assert found.divergence == pytest.approx(expected, abs=1e-9), reference
        assert found.divergence_floor == pytest.approx(found.divergence, abs=0.02)
    far = measure(base, ["w0 w1", "w1 w0"] * 20, 32, str(text))
    assert far.divergence > 3 * far.divergence_floor


def _frequencies(texts, vocab):
    words = [word for text in texts for word in text.split()]
    return [words.count(word) for word in vocab]


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    base = checkpoint(tmp_path / "base")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(row["text"] for row in animal_texts(50)))
    settings = {"input": {"paths": [str(text)], "document": "line"}, "workers": 1,
                "output": str(tmp_path / "shards"), "split": {"valid": 0.0},
                "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}}}  # fmt: skip
    config = tmp_path / "prepare.yaml"
    config.write_text(json.dumps(settings))
    prepare(load(DataPrepConfig, config))
    with pytest.raises(UserError, match="another tokenizer"):
        measure(base, ["w0 w1"], 32, str(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("examples", "own_loss", "strategy"),
    [
        (19, 4.9, "head"),
        (19, 5.0, "partial"),
        (20, 4.9, "full"),
        (20, 5.0, "architecture"),
        (9000, 7.0, "architecture"),
    ],
)
def test_the_table(examples, own_loss, strategy):
    measured = KNOWN._replace(examples=examples, own_loss=own_loss)
    found = advise(Transfer(strategy="auto", layer_decay=0.9), measured, 6)
    assert found.transfer.strategy == strategy
    assert found.transfer.layer_decay == 0.9  # what is not chosen stays
    assert found.transfer.freeze_layers == (3 if strategy == "partial" else None)
    assert f"{examples:,} examples" in found.reasons[0]
    assert f"{own_loss:.2f} nats per token" in found.reasons[0]
    assert found.reasons[1].startswith(f"so {strategy}: ")
    again = decided(json.loads(json.dumps(found.as_json())))
    assert again == found


def test_a_head_of_the_embeddings_is_not_asked_to_learn_alone():
    few = KNOWN._replace(examples=10, own_loss=2.0)
    found = advise(Transfer(strategy="auto"), few, 4, has_own_head=False)
    assert found.transfer.strategy == "partial"
    assert "(like its own texts)" in found.reasons[0]
    assert "a head that is the embeddings' own matrix can't learn alone" in found.reasons[1]


def test_without_a_language_model_the_vocabulary_tells():
    silent = KNOWN._replace(examples=2000, own_loss=None)
    assert advise(Transfer(), silent, 2).transfer.strategy == "full"
    far = silent._replace(divergence=0.9)
    assert advise(Transfer(), far, 2).transfer.strategy == "architecture"
    blind = far._replace(divergence=None, divergence_floor=None)
    found = advise(Transfer(), blind, 2)
    assert found.transfer.strategy == "full"
    assert "nothing tells" in found.reasons[0]


def test_unknown_tokens_are_warned_of():
    (line,) = [x for x in advise(Transfer(), KNOWN._replace(unknown=0.5), 2).reasons if "50%" in x]
    assert line.startswith("warning: the tokenizer does not know")
    assert not [x for x in advise(Transfer(), KNOWN, 2).reasons if "warning" in x]


def test_auto_tells_like_from_unlike_and_says_why(tmp_path, capsys):
    taught(tmp_path / "base")
    task_files(tmp_path, counting_texts(16, seed=1))
    shape = {"transfer__strategy": "auto", "epochs": 1}
    assert finetune(config_file(tmp_path, **shape)) == 0
    like = read_report(tmp_path / "run")["transfer"]
    assert like["measured"]["explained"] > 0.5
    assert "nats per token" in capsys.readouterr().out
    shuffled = random.Random(0)
    mixed = [" ".join(shuffled.sample(t.split(), 12)) for t in counting_texts(16, seed=1)]
    task_files(tmp_path, mixed)
    other = tmp_path / "other"
    assert finetune(config_file(tmp_path, run__dir=str(other), **shape)) == 0
    unlike = read_report(other)["transfer"]
    assert unlike["measured"]["explained"] < 0
    assert unlike["measured"]["unigram_loss"] == pytest.approx(like["measured"]["unigram_loss"])
    assert {like["strategy"], unlike["strategy"]} == {"head", "partial"}
    assert "vocabulary" not in " ".join(like["reasons"])  # no pretraining text is known


def test_a_resumed_run_stays_with_what_was_chosen(tmp_path, monkeypatch):
    taught(tmp_path / "base")
    task_files(tmp_path, counting_texts(16, seed=1))
    shape = {"transfer__strategy": "auto", "epochs": 2, "batch__global_batch_size": 4}
    straight = tmp_path / "straight"
    assert finetune(config_file(tmp_path, run__dir=str(straight), **shape)) == 0
    path = config_file(tmp_path, **shape)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert finetune(path) == 75
    # Where it would be asked again, the model has learned something else by now.
    monkeypatch.setattr(similarity, "own_loss", lambda *_: 99.0)
    assert finetune(path) == 0
    assert records(tmp_path / "run", "loss") == records(straight, "loss")
    assert read_report(tmp_path / "run")["transfer"] == read_report(straight)["transfer"]


def test_two_ranks_agree(tmp_path):
    taught(tmp_path / "base")
    task_files(tmp_path, counting_texts(16, seed=1))
    one, two = tmp_path / "one", tmp_path / "two"
    shape = {"transfer__strategy": "auto", "epochs": 1, "batch__micro_batch_size": 8}
    assert finetune(config_file(tmp_path, run__dir=str(one), **shape)) == 0
    path = config_file(tmp_path, run__dir=str(two), **shape)
    status, output = run(["-m", "finetune", str(path)], ranks=2)
    assert status == 0, output
    assert read_report(two)["transfer"]["strategy"] == read_report(one)["transfer"]["strategy"]
    assert records(one, "loss") == pytest.approx(records(two, "loss"), abs=1e-4)


def test_a_classifier_without_a_language_model_is_measured_by_what_there_is(tmp_path):
    torch.manual_seed(0)
    base = checkpoint(tmp_path / "base")
    shape = preset("llama-tiny", n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64,
                   vocab_size=38, max_seq_len=64, num_labels=2, eos_token_id=0,
                   tie_embeddings=False)  # fmt: skip
    save_pretrained(build(shape, "sequence"), tmp_path / "classifier", tokenizer_dir=base)
    found = measure(tmp_path / "classifier", ["w0 w1"], 32)
    assert found.own_loss is None
    assert found.explained is None
