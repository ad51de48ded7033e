"""The failure handbook quotes what is really printed."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from data_prep.__main__ import main as data_prep
from data_prep.shards import Shards
from runtime.errors import UserError
from tests.architecture.source import sources
from tests.corpus import prepare_corpus
from tests.docs.pages import page
from tests.processes import ROOT, run
from tests.tiny_run import write_config

HANDBOOK = "docs/failures.md"
LEAST = 10  # letters of a message that do not vary
_PREFIX = re.compile(r"(error|warning|supervise): ")


def quoted() -> list[str]:
    """The messages of the handbook: code in the first column of its tables."""
    first = re.findall(r"^\| (`.+?) \| ", page(HANDBOOK).prose, re.MULTILINE)
    return [text.strip("`") for text in first]


@cache
def templates() -> list[re.Pattern[str]]:
    """Every text of the code that may become a message: what varies in it matches anything."""
    found = [pattern for source in sources() for pattern in _texts(source.tree)]
    shell = [p.read_text(encoding="utf-8") for p in (ROOT / "launch").glob("*.sh")]
    echoed = [text for script in shell for text in re.findall(r'echo "(error: [^"]+)"', script)]
    return found + [re.compile(re.sub(r"\\\$\w+", ".+", re.escape(text))) for text in echoed]


def _texts(tree: ast.Module) -> list[re.Pattern[str]]:
    inner = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else None for p in node.values]
        elif isinstance(node, ast.Constant) and id(node) not in inner:
            # What `str.format` fills in varies as well.
            text = node.value if isinstance(node.value, str) else ""
            parts = list(_between(re.split(r"\{\w+\}", text)))
        else:
            continue
        if sum(len(part or "") for part in parts) >= LEAST:
            text = "".join(".+?" if part is None else re.escape(part) for part in parts)
            found.append(re.compile(text, re.DOTALL))
    return found


def _between(parts: list[str]) -> Iterator[str | None]:
    """The parts, and None for what stands between two of them."""
    for number, part in enumerate(parts):
        yield from (None, part) if number else (part,)


@pytest.mark.parametrize("message", quoted())
def test_quoted_messages_are_in_the_code(message: str) -> None:
    bare = _PREFIX.sub("", message)
    is_known = any(p.fullmatch(text) for p in templates() for text in (message, bare))
    assert is_known, f"the code has no message {message!r}"


def test_what_is_not_in_the_code_is_found_out() -> None:
    """The comparison above must be able to fail."""
    real = "rank 7 ended suddenly in phase 'step' at step 3; was it killed?"
    assert any(p.fullmatch(real) for p in templates())
    for wrong in (real.replace("suddenly", "slowly"), "there is no such message anywhere: sorry"):
        assert not any(p.fullmatch(wrong) for p in templates())


def test_the_wrong_config_gives_the_lines_that_are_shown(tmp_path: Path) -> None:
    blocks = page(HANDBOOK).blocks
    (config,) = (b for b in blocks if b.file_name == "wrong.yaml")
    (shown,) = (b for b in blocks if b.text.startswith("error: wrong.yaml"))
    (tmp_path / "wrong.yaml").write_text(config.text, encoding="utf-8")
    status, printed = run(
        ["-m", "launch", "check", "wrong.yaml", "--ranks", "8"], cwd=tmp_path, timeout=60
    )
    assert status == 2
    assert printed == shown.text


def test_broken_data_is_told_as_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 of 1,000 lines are broken; then the plan changes, then a byte on the disk."""
    monkeypatch.chdir(tmp_path)
    lines = ['{"text": "hello"}\n'] * 960 + ["{broken\n"] * 40
    Path("texts.jsonl").write_text("".join(lines), encoding="utf-8")
    config = ["input.paths=[texts.jsonl]", "output=data/my-text", "workers=1"]
    config += ["tokenizer.train.kind=char"]
    assert data_prep(["run", *config]) == 1
    assert data_prep(["run", *config, "max_bad_fraction=0.1"]) == 0
    assert data_prep(["run", *config, "max_bad_fraction=0.1", "split.valid=0.1"]) == 1
    with pytest.raises(UserError) as told:
        Shards("data/my-text", "valid")
    shard = Path("data/my-text/train_00000.bin")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert data_prep(["verify", "data/my-text"]) == 1
    printed = capsys.readouterr().err + str(told.value)
    said = [message for message in quoted() if "data/my-text" in message and message in printed]
    assert len(said) == 4, printed


@pytest.mark.slow
def test_a_damaged_checkpoint_and_a_changed_config_are_told_as_quoted(tmp_path: Path) -> None:
    corpus = prepare_corpus(tmp_path, documents=60)
    directory = Path("runs/my-run")
    config = write_config(
        tmp_path / "run.yaml", directory, corpus, steps=8, evaluate__every_steps=0
    )
    command = ["-m", "pretrain", str(config)]
    assert run([*command, "steps=6"], cwd=tmp_path)[0] == 0
    status, printed = run(command, cwd=tmp_path)
    assert status == 0, printed
    _is_told(printed, "changed: steps was 6, now 8")
    newest = tmp_path / directory / "checkpoints/step_00000008"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    status, printed = run([*command, "optim.name=muon"], cwd=tmp_path)
    assert status == 2, printed
    _is_told(
        printed,
        f"warning: checkpoint passed over: {directory}/checkpoints/step_00000008/model.safetensors"
        ": its sha256 differs: damaged",
        "optim.name: the checkpoint has no momentum_buffer of trunk.blocks.0.attention.qkv.weight, "
        "so another optimizer wrote it; restore optim.name, or choose another run.dir",
    )


def _is_told(printed: str, *messages: str) -> None:
    for message in messages:
        assert message in printed
        assert message in quoted()
