"""Perplexity and tasks of checkpoints, against transformers and the lm-evaluation-harness."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from data_prep.tokenizer import DocumentTokenizer
from model import ModelConfig, build, preset, save_pretrained
from pretrain.__main__ import main
from pretrain.scoring.perplexity import Reading, Scorer
from pretrain.scoring.records import targets
from pretrain.scoring.windows import windows
from runtime.errors import UserError
from tests.corpus import sentences

CPU = torch.device("cpu")
TEXTS = [" ".join(sentences(n, seed=n)) for n in (1, 12, 3, 30)]


def save_random_model(directory: Path, data: Path, name: str, seq_len: int = 24) -> Path:
    """A random model over the vocabulary of prepared data, as a checkpoint would hold it."""
    torch.manual_seed(5)
    tokenizer = DocumentTokenizer(data)
    shape = {"n_layers": 2, "d_model": 32, "n_heads": 2, "max_seq_len": seq_len}
    config: ModelConfig = preset(
        name,
        **shape,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.eod_id,
        eos_token_id=tokenizer.eod_id,
    )
    net = build(config)
    for parameter in net.parameters():  # so that scores differ from one another
        torch.nn.init.normal_(parameter, std=0.3)
    save_pretrained(net, directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((data / file).read_bytes())
    return directory


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return save_random_model(tmp_path_factory.mktemp("m") / "causal", corpus, "gpt2-124m")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, bert_corpus: Path) -> Path:
    return save_random_model(tmp_path_factory.mktemp("m") / "masked", bert_corpus, "bert-tiny")


def test_each_token_is_scored_once_with_the_context_that_was_asked_for() -> None:
    for n, length, stride in ((0, 8, 4), (1, 8, 4), (8, 8, 8), (9, 8, 3), (100, 8, 1), (41, 7, 7)):
        found = list(windows(n, length, stride))
        scored = [i for window in found for i in range(window.first, window.end)]
        assert scored == list(range(n))
        assert all(window.end - window.start <= length for window in found)
        behind_first = found[1:]
        assert all(window.first - window.start >= length - stride for window in behind_first)


@pytest.mark.parametrize("stride", [24, 7])
def test_nats_are_those_of_transformers(causal: Path, stride: int) -> None:
    """Each token by itself: the longest context that its window allows."""
    found = Scorer(causal, Reading(stride=stride, batch_size=3), CPU).score(lambda: TEXTS)
    reference = AutoModelForCausalLM.from_pretrained(causal)
    tokenizer = DocumentTokenizer(causal)
    nats, count = 0.0, 0
    for ids in (ids.tolist() for ids in tokenizer.encode(TEXTS)):
        whole = [tokenizer.eod_id, *ids]  # whole[i + 1] is ids[i]
        for place in range(len(ids)):
            new = 24 if place < 24 else stride
            first = 0 if place < 24 else 24 + (place - 24) // stride * stride
            end = min(first + new, len(ids))
            seen = torch.tensor([whole[max(0, end - 24) : place + 1]])
            with torch.no_grad():
                scores = reference(seen).logits[0, -1]
            nats += float(cross_entropy(scores, torch.tensor(ids[place])))
            count += 1
    metrics = found.metrics()
    assert (found.scored, found.tokens) == (count, count)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    size = sum(len(text.encode()) for text in TEXTS)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_pseudo_perplexity_hides_one_token_at_a_time(masked: Path) -> None:
    text = TEXTS[0]
    found = Scorer(masked, Reading(batch_size=4), CPU).score(lambda: [text])
    reference = AutoModelForMaskedLM.from_pretrained(masked)
    tokenizer = DocumentTokenizer(masked)._tokenizer
    names = ("[CLS]", "[SEP]", "[MASK]")
    cls, sep, mask = (tokenizer.token_to_id(name) for name in names)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert 3 < len(ids) <= 22
    nats = 0.0
    for place, token in enumerate(ids):
        seen = [cls, *ids[:place], mask, *ids[place + 1 :], sep]
        with torch.no_grad():
            scores = reference(torch.tensor([seen])).logits[0, place + 1]
        nats += float(cross_entropy(scores, torch.tensor(token)))
    assert found.scored == len(ids)
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_masked_tokens_are_spread_evenly(masked: Path) -> None:
    whole = Scorer(masked, Reading(), CPU).score(lambda: TEXTS)
    some = Scorer(masked, Reading(max_tokens=20), CPU).score(lambda: TEXTS)
    assert whole.scored == whole.tokens == some.tokens > 60
    assert 10 < some.scored <= 20
    assert abs(some.metrics()["nats_per_token"] / whole.metrics()["nats_per_token"] - 1) < 0.3


def test_a_text_is_never_a_special_token(causal: Path) -> None:
    """An end of document that is written in a text is text."""
    tokenizer = DocumentTokenizer(causal)
    found = Scorer(causal, Reading(), CPU).score(lambda: [f"a {tokenizer.eod} b"])
    assert found.tokens == len(f"a {tokenizer.eod} b")  # characters


def test_a_tokenizer_that_loses_text_is_told(masked: Path, causal: Path) -> None:
    lossless = Scorer(causal, Reading(), CPU).score(lambda: TEXTS)
    assert (lossless.lossy, lossless.unknown) == (0, 0)
    lossy = Scorer(masked, Reading(max_tokens=5), CPU).score(lambda: ["Ω the cat", *TEXTS])
    assert lossy.unknown == 1
    assert lossy.lossy > 0


def run_with(directory: Path, checkpoint: Path, steps: tuple[int, ...]) -> Path:
    """A run whose checkpoints are copies of one model, committed as runs commit them."""
    from runtime.checkpoint.format import MANIFEST, hash_file, step_dir

    for step in steps:
        path = step_dir(directory / "checkpoints", step)
        path.mkdir(parents=True)
        files = {}
        for file in checkpoint.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
            size = file.stat().st_size
            files[file.name] = {"size": size, "sha256": hash_file(path / file.name)}
        manifest = {"schema": 1, "step": step, "files": files}
        (path / MANIFEST).write_text(json.dumps(manifest))
    return directory


def test_scores_stand_beside_the_run_by_step(
    causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path / "run", causal, (4, 8))
    (run / "tensorboard").mkdir()
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(TEXTS), encoding="utf-8")
    command = ["evaluate", str(run), str(text), "--document", "paragraph", "--every-checkpoint"]
    assert main(command) == 0
    assert "perplexity" in capsys.readouterr().out
    records = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 8]
    assert records[0]["counts"]["documents"] == 4
    assert records[0]["name"] == str(text)

    events = EventAccumulator(str(run / "tensorboard" / "scores")).Reload()
    told = [(e.step, e.value) for e in events.Scalars(f"{text}/perplexity")]
    values = [record["metrics"]["perplexity"] for record in records]
    assert told == [(4, pytest.approx(values[0])), (8, pytest.approx(values[1]))]

    assert main(command) == 0  # nothing is scored twice
    assert "is scored already" in capsys.readouterr().err
    assert len((run / "scores.jsonl").read_text().splitlines()) == 2

    text.write_text("another text", encoding="utf-8")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [record["counts"]["documents"] for record in found] == [1, 1]


def test_damaged_checkpoints_are_not_scored(causal: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", causal, (4, 8))
    weights = next((run / "checkpoints" / "step_00000008").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert [target.step for target in targets(run)] == [4]
    with pytest.raises(UserError, match="step_00000008"):
        targets(run, every_checkpoint=True)
    assert targets(causal) == [(causal.resolve(), None, None)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "{text}"], "nowhere: no such directory"),
        (["{model}"], "nothing to evaluate on"),
        (["{model}", "none.txt"], "none.txt: there is no such file"),
        (["{model}", "{text}", "--seq-len", "99"], "--seq-len: got 99, expected 2 to 24"),
        (["{model}", "{text}", "--stride", "25"], "--stride: got 25, expected 1 to 24"),
        (["{model}", "{text}", "--batch-size", "0"], "--batch-size: got 0, expected 1 or more"),
        (["{model}", "{empty}"], "holds no text to score"),
        (["{model}", "--tasks", "no_such_task"], "no task 'no_such_task'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    causal: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    text, empty = tmp_path / "text.txt", tmp_path / "empty.txt"
    text.write_text("the cat")
    empty.write_text("")
    words = [w.format(model=causal, text=text, empty=empty) for w in arguments]
    assert main(["evaluate", *words]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert told in error
    assert len(warnings) == ("{empty}" in arguments)  # an empty file is a bad record


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiple choice and a perplexity task, with their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    choices = [
        {"question": "the cat", "choices": [" sees it.", " 北京"], "answer": 0},
        {"question": "a dog", "choices": [" paints", " the"], "answer": 1},
        {"question": "seven", "choices": [" stones", " itself"], "answer": 0},
    ]
    for name, rows in {"choices": choices, "texts": [{"text": text} for text in TEXTS]}.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
        }
        if name == "choices":
            task |= {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "answer",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            }
        else:
            task |= {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
            }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def test_local_tasks_without_a_network(
    causal: Path,
    local_tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The harness reads the checkpoint as it is; its rolling likelihood is our perplexity."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCAL_RANK", "0")  # as an engine of this process, or a launcher, leaves it
    run = run_with(tmp_path / "run", causal, (3,))
    tasks = ["--tasks", "local_choices,local_texts", "--task-folder", str(local_tasks)]
    assert main(["evaluate", str(run), *tasks]) == 0
    lines = (run / "scores.jsonl").read_text().splitlines()
    found = {record["name"]: record for record in map(json.loads, lines)}
    assert {record["kind"] for record in found.values()} == {"task"}

    tokenizer = DocumentTokenizer(causal)
    reference = AutoModelForCausalLM.from_pretrained(causal)

    def likelihood(question: str, answer: str) -> float:
        before, after = (ids.tolist() for ids in tokenizer.encode([question, answer]))
        with torch.no_grad():
            scores = reference(torch.tensor([before + after])).logits[0].log_softmax(-1)
        places = range(len(before) - 1, len(before) + len(after) - 1)
        return sum(float(scores[p, t]) for p, t in zip(places, after, strict=True))

    questions = [json.loads(line) for line in (local_tasks / "choices.jsonl").open()]
    right = 0
    for row in questions:
        scores = [likelihood(row["question"], choice) for choice in row["choices"]]
        right += scores.index(max(scores)) == row["answer"]
    assert found["local_choices"]["metrics"]["acc"] == pytest.approx(right / len(questions))

    ours = Scorer(causal, Reading(stride=24), CPU).score(lambda: TEXTS).metrics()
    theirs = found["local_texts"]["metrics"]
    assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)
    assert theirs["word_perplexity"] == pytest.approx(ours["word_perplexity"], rel=1e-4)
    capsys.readouterr()
    assert main(["evaluate", str(run), *tasks]) == 0
    assert "is scored already" in capsys.readouterr().err
