import gzip
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from data_prep import Shards, manifest
from data_prep.tokenizer import DocumentTokenizer
from runtime.errors import UserError
from tests.data_prep.samples import contents, make_texts, settings, write_jsonl

ROOT = Path(__file__).parents[2]


def decoded(directory: Path, split: str = "train") -> list[str]:
    shards = Shards(directory, split, verify=True)
    tokenizer = DocumentTokenizer(directory)
    assert all(document[-1] == shards.eod_id for document in shards)
    return [tokenizer.decode(document[:-1]) for document in shards]


def test_every_document_arrives_in_order(tmp_path, run):
    texts = make_texts(200)
    write_jsonl(tmp_path / "a.jsonl", texts[:90])
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(write_jsonl(tmp_path / "b", texts[90:]).read_bytes())
    )
    made = run([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"])
    assert decoded(tmp_path / "out") == texts
    assert made.documents == 200
    assert made.tokens == Shards(tmp_path / "out").tokens
    assert made.splits["train"].text_bytes == sum(len(t.encode()) for t in texts)
    assert [(s.path.rpartition("/")[2], s.documents) for s in made.sources] == [
        ("a.jsonl", 90),
        ("b.jsonl.gz", 110),
    ]
    assert len(made.shards) > 2
    assert not (tmp_path / "out" / ".work").exists()


def test_folders_and_globs_are_read_sorted_and_once(tmp_path, run):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.txt", "a.md", "deep/c.txt"):
        (folder / name).write_text(f"text of {name}")
    (folder / "skip.bin").write_bytes(b"\xff")
    run([folder / "b.txt", folder, folder / "*.txt"])
    assert decoded(tmp_path / "out") == ["text of b.txt", "text of a.md", "text of deep/c.txt"]


def test_bad_records_are_kept_aside_with_file_line_and_reason(tmp_path, run):
    lines = [orjson.dumps({"text": t}) for t in make_texts(300)]
    lines[150] = b'{"text": "\xff"}'
    lines[201] = b"{"
    lines[299] = b'{"text": null}'
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    made = run(path, max_bad_fraction=0.01)
    assert made.documents == 297
    assert made.dropped == {"invalid_utf8": 1, "invalid_json": 1, "null_text": 1}
    assert made.sources[0].dropped == made.dropped
    bad = [orjson.loads(line) for line in (tmp_path / "out/quarantine.jsonl").open("rb")]
    assert [(b["file"], b["line"], b["reason"]) for b in bad] == [
        (str(path), 151, "invalid_utf8"),
        (str(path), 202, "invalid_json"),
        (str(path), 300, "null_text"),
    ]
    assert bad[1]["excerpt"] == "{"


def test_too_many_bad_records_fail_the_run_and_a_larger_budget_goes_on(tmp_path, run):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([orjson.dumps({"text": "good text"})] * 90 + [b"{"] * 10))
    with pytest.raises(UserError, match=r"10 of 100 records.*invalid_json 10") as caught:
        run(path, max_bad_fraction=0.09)
    assert caught.value.status == 1
    assert not (tmp_path / "out/manifest.json").exists()
    assert len((tmp_path / "out/quarantine.jsonl").read_bytes().splitlines()) == 10
    assert run(path, max_bad_fraction=0.1).documents == 90


def test_output_does_not_depend_on_workers(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(150))
    run(path, "one", workers=1, split__valid=0.1)
    run(path, "two", workers=2, split__valid=0.1)
    assert len(contents(tmp_path / "one")) > 8
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def command(tmp_path: Path, output: Path, **changes) -> list[str]:
    chosen = settings(**changes)
    chosen["input"]["paths"] = [str(tmp_path / "x.jsonl")]
    chosen["output"] = str(output)
    file = tmp_path / f"{output.name}.yaml"
    file.write_bytes(orjson.dumps(chosen))
    return [sys.executable, "-m", "data_prep", "run", str(file)]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_runs_go_on_to_the_same_bytes(tmp_path, run, workers):
    write_jsonl(tmp_path / "x.jsonl", make_texts(2500))
    run(tmp_path / "x.jsonl", "whole", split__valid=0.1)
    output = tmp_path / "killed"
    rng = random.Random(workers)
    kills = 0
    for _ in range(3):
        started = subprocess.Popen(
            command(tmp_path, output, workers=workers, split__valid=0.1),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = len(list(output.rglob("*.idx")))
        target = before + rng.randint(1, 12)
        while started.poll() is None and len(list(output.rglob("*.idx"))) < target:
            time.sleep(0.001)
        if started.poll() is None:
            started.send_signal(signal.SIGKILL)
            kills += 1
        started.wait()
        if not (output / "manifest.json").exists():
            with pytest.raises(UserError, match="is not finished"):
                Shards(output)
    assert kills
    wait_for_lock(output)
    done = subprocess.run(
        command(tmp_path, output, workers=workers, split__valid=0.1),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(tmp_path / "whole")
    assert not [p for p in output.rglob("*") if ".tmp-" in p.name]


def wait_for_lock(output: Path) -> None:
    """The killed parent's workers notice within moments; nothing is to be waited for but that."""
    time.sleep(0.2)


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_units_are_not_made_again(tmp_path, run, capsys, workers):
    path = write_jsonl(tmp_path / "x.jsonl", [*make_texts(100), "x"])
    with path.open("ab") as stream:
        stream.write(b"{\n")
    for _ in range(2):  # the second time no unit is left to run
        with pytest.raises(UserError, match="max_bad_fraction"):
            run(path, max_bad_fraction=0, workers=workers)
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.bin")}
    next((tmp_path / "out").rglob("train_00001.bin")).unlink()
    assert run(path, max_bad_fraction=1, workers=workers).documents == 101
    again = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.bin")}
    assert {name for name in stamps if stamps[name] != again[name]} == {"train_00001.bin"}
    assert "going on: " in capsys.readouterr().out


def test_a_finished_directory_is_left_alone(tmp_path, run, capsys):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(50))
    run(path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("[a-z]*.*")}
    run(path, workers=2, max_bad_fraction=0.5)  # neither decides the output
    assert "already prepared" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("[a-z]*.*")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__train__vocab_size": 301}, "tokenizer.train.vocab_size was 300, now 301"),
        ({"split__valid": 0.5}, "split.valid was 0.0, now 0.5"),
        ({"input__text_key": "body"}, "input.text_key was text, now body"),
        ({"work_unit_bytes": 5000}, "work_unit_bytes was 4096, now 5000"),
    ],
)
def test_a_changed_config_is_refused(tmp_path, run, changes, message):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(50))
    run(path)
    with pytest.raises(UserError, match=message) as caught:
        run(path, **changes)
    assert "choose another output or delete" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_inputs_are_refused(tmp_path, run):
    first = write_jsonl(tmp_path / "x.jsonl", make_texts(50))
    second = write_jsonl(tmp_path / "y.jsonl", make_texts(20, seed=1))
    run([first, second], "both")
    with pytest.raises(UserError, match=r"input file .*y\.jsonl was removed"):
        run(first, "both")
    run(first)
    data = bytearray(first.read_bytes())
    data[data.index(b"river")] ^= 1  # the same size
    first.write_bytes(data)
    with pytest.raises(UserError, match=r"the content of input file .*x\.jsonl changed"):
        run(first)
    write_jsonl(first, make_texts(50))  # restored: another time, the same content
    run(first)


def test_two_runs_in_one_directory_are_refused(tmp_path, run):
    from data_prep.atomic import locked

    path = write_jsonl(tmp_path / "x.jsonl", make_texts(10))
    (tmp_path / "out").mkdir()
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match=rf"being written by another run \(process {os.getpid()}\)"),
    ):
        run(path)
    assert run(path).documents == 10


def test_other_peoples_directories_are_refused(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(10))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(such as thesis.tex\)"):
        run(path)


def test_a_hash_split_does_not_depend_on_other_documents(tmp_path, run):
    texts = make_texts(400)
    write_jsonl(tmp_path / "x.jsonl", texts)
    made = run(tmp_path / "x.jsonl", split__valid=0.25)
    assert 70 <= made.splits["valid"].documents <= 130  # 100 ± 3.5 standard deviations
    valid = set(decoded(tmp_path / "out", "valid"))
    assert valid | set(decoded(tmp_path / "out")) == set(texts)
    write_jsonl(tmp_path / "y.jsonl", texts[::-2])
    run(tmp_path / "y.jsonl", "half", split__valid=0.25)
    assert set(decoded(tmp_path / "half", "valid")) == valid & set(texts[::-2])


def test_a_tail_split_cuts_one_text_by_characters(tmp_path, run):
    text = "".join(make_texts(100))
    (tmp_path / "x.txt").write_bytes(text.encode())
    char = {"tokenizer__train__kind": "char", "tokenizer__train__vocab_size": None}
    run(tmp_path / "x.txt", split__valid=0.1, split__by="tail", **char)
    cut = int(len(text) * 0.9)
    assert decoded(tmp_path / "out") == [text[:cut]]
    assert decoded(tmp_path / "out", "valid") == [text[cut:]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_tail_split_takes_the_last_documents_of_each_file(tmp_path, run, packed):
    texts = [f"{n:04} {'same length' * 3}" for n in range(200)]
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    if packed:
        data = gzip.compress(path.read_bytes())
        path = tmp_path / "x.jsonl.gz"
        path.write_bytes(data)
    run(path, split__valid=0.1, split__by="tail")
    assert decoded(tmp_path / "out") == texts[:180]
    assert decoded(tmp_path / "out", "valid") == texts[180:]


def test_unknown_characters_are_counted(tmp_path, run):
    char = {"tokenizer__train__kind": "char", "tokenizer__train__vocab_size": 8}
    (tmp_path / "x.txt").write_text("a" * 50 + "b" * 40 + "cdefghij" * 2)
    made = run(tmp_path / "x.txt", **char)
    assert made.splits["train"].unknown_tokens == 8  # four of ten characters fit, two each left


def test_a_sample_smaller_than_the_input_trains_the_same_tokenizer_again(tmp_path, run):
    path = write_jsonl(tmp_path / "x.jsonl", make_texts(400))
    for output in ("one", "two"):
        run(path, output, tokenizer__train__sample_bytes=5000, split__valid=0.1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run(path, "all", split__valid=0.1)
    assert manifest.load(tmp_path / "all").tokenizer != manifest.load(tmp_path / "one").tokenizer


def test_an_interrupted_run_says_so_and_goes_on(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", make_texts(4000))
    output = tmp_path / "out"
    started = subprocess.Popen(
        command(tmp_path, output, workers=2),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job, as a CI may be, ignores SIGINT and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while started.poll() is None and not list(output.glob(".work/*/unit_*.json")):
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    told = started.communicate()[1]
    assert started.returncode == 75
    # Where a stage takes 10 s, lines of progress come before.
    (said,) = [line for line in told.splitlines() if " MB/s, " not in line]
    assert said.startswith("error: interrupted; finished work is kept")
    done = subprocess.run(
        command(tmp_path, output, workers=2), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "going on: " in done.stdout
    assert len(decoded(output)) == 4000


@pytest.mark.skipif(
    not (ROOT.parent / "shared/data/corpora").exists(), reason="../shared/data is not there"
)
def test_real_prose_round_trips(tmp_path, run):
    path = ROOT.parent / "shared/data/corpora/eips.jsonl.gz"
    run(path, work_unit_bytes=1 << 20, tokenizer__train__vocab_size=1000)
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    texts = [orjson.loads(line)["text"] for line in lines if line]
    assert decoded(tmp_path / "out") == texts
