import json
import shutil

import pytest
import torch

from finetune.checkpoint import (
    Purpose,
    Saved,
    best_score,
    load_optimizer,
    publish_best,
    recover_best,
)
from finetune.config import Optim
from finetune.tasks import task_of
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model import load_pretrained
from model.init import parameter_groups
from runtime.checkpoint import list_checkpoints, newest_verified, verify
from runtime.checkpoint.reader import TrainingState
from runtime.checkpoint.saver import Saver
from runtime.dist import Ranks
from runtime.errors import UserError
from runtime.optim import build_optimizer
from runtime.sections import Checkpoint
from tests.finetune.toys import checkpoint

PURPOSE = Purpose(task_of(TaskKeys()), ["a", "b", "c"])


def score(step, value):
    return {"step": step, "metric": "accuracy", "dev_score": value}


def optimizer_of(net, name):
    groups = parameter_groups(net, 0.1, muon=name == "muon")
    return build_optimizer(groups, Optim(name=name))


@pytest.fixture(params=["adamw"])
def parts(tmp_path, request):
    directory = checkpoint(tmp_path / "base")
    net = load_pretrained(directory, head="sequence", num_labels=3)
    net.config = net.config.model_copy(update={"pad_token_id": 0})
    optimizer = optimizer_of(net, request.param)
    return net, optimizer, TextTokenizer(directory, net.config, 16)


def step(net, optimizer):
    ids = torch.arange(1, 9).view(2, 4)
    net(ids, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def save(root, step, net, optimizer, tokenizer):
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    saver = Saver(root, ranks, Checkpoint(background=False), say=print, beat=lambda: None)
    saved = Saved(net, optimizer, tokenizer, PURPOSE, ranks)
    saver.save(step, saved, saved, {"step": step})


@pytest.mark.parametrize("parts", ["adamw", "muon", "lion"], indirect=True)
def test_saved_and_loaded_steps_on_alike(tmp_path, parts):
    net, optimizer, tokenizer = parts
    name = type(optimizer).__name__.lower()
    for _ in range(3):
        step(net, optimizer)
    save(tmp_path / "c", 3, net, optimizer, tokenizer)
    info = newest_verified(tmp_path / "c")
    assert info is not None
    assert info.step == 3
    other = load_pretrained(info.path, head="sequence")
    twin = optimizer_of(other, name)
    load_optimizer(other, twin, TrainingState(info.path))
    for _ in range(2):
        step(net, optimizer)
        step(other, twin)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("parts", ["lion"], indirect=True)
def test_moments_of_another_optimizer_are_refused(tmp_path, parts):
    net, optimizer, tokenizer = parts
    step(net, optimizer)
    save(tmp_path / "c", 1, net, optimizer, tokenizer)
    state = TrainingState(newest_verified(tmp_path / "c").path)
    with pytest.raises(UserError, match=r"no exp_avg of trunk\.\S+, so another optimizer wrote it"):
        load_optimizer(net, optimizer_of(net, "adamw"), state)


def test_a_crash_before_the_rename_leaves_no_checkpoint(tmp_path, parts, monkeypatch):
    net, optimizer, tokenizer = parts
    step(net, optimizer)

    def crash(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("runtime.checkpoint.commit.hash_file", crash)
        patched.setattr("runtime.checkpoint.saver.RETRY_PAUSES_S", (0.01,))
        with pytest.raises(UserError, match="No space"):
            save(tmp_path / "c", 1, net, optimizer, tokenizer)
    assert list_checkpoints(tmp_path / "c") == []
    save(tmp_path / "c", 1, net, optimizer, tokenizer)  # over what the crash left
    assert verify(list_checkpoints(tmp_path / "c")[0].path) == []


def test_no_pickle_is_written(tmp_path, parts):
    save(tmp_path / "c", 1, parts[0], parts[1], parts[2])
    kinds = {path.suffix for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ""}


def test_the_best_is_replaced_whole(tmp_path, parts):
    net, _, tokenizer = parts
    best = tmp_path / "best"
    assert best_score(best) is None
    publish_best(best, net, dict(net.named_parameters()), tokenizer, PURPOSE, score(5, 0.5))
    publish_best(best, net, dict(net.named_parameters()), tokenizer, PURPOSE, score(9, 0.75))
    assert best_score(best) == score(9, 0.75)
    assert {p.name for p in tmp_path.iterdir()} == {"base", "base-tokenizer", "best"}
    settings = json.loads((best / "tokenizer_config.json").read_text())
    assert (settings["pad_token"], settings["model_max_length"]) == ("<|endoftext|>", 16)


def test_a_crash_between_the_renames_loses_nothing(tmp_path, parts, monkeypatch):
    net, _, tokenizer = parts
    best = tmp_path / "best"
    publish_best(best, net, dict(net.named_parameters()), tokenizer, PURPOSE, score(5, 0.5))
    real = type(best).rename

    def crash(self, target):
        if self.name == ".best.new":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(type(best), "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            publish_best(
                best, net, dict(net.named_parameters()), tokenizer, PURPOSE, score(9, 0.75)
            )
    assert not best.exists()
    recover_best(best)
    assert best_score(best)["step"] == 5
    shutil.rmtree(best)
    recover_best(best)  # nothing to bring back
    assert not best.exists()
