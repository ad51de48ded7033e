"""X5: configs from an attacker: a typed error in little time, and nothing imported."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import DataPrepConfig
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from runtime.config import MAX_CONFIG_BYTES, Config, ConfigError, load

SCHEMAS: list[type[Config]] = [PretrainConfig, DataPrepConfig, FinetuneConfig]
CANARY = "canary_that_nobody_imports"

TAGS = [
    "!!python/object/apply:os.mkdir [MARKER]",
    "!!python/object/apply:os.system ['mkdir MARKER']",
    "!!python/object/apply:subprocess.Popen [[mkdir, MARKER]]",
    "!!python/object/new:os.mkdir [MARKER]",
    "!!python/object/new:CANARY.Evil {}",
    "!!python/object:CANARY.Evil {}",
    '!!python/object/apply:builtins.eval [\'__import__("os").mkdir("MARKER")\']',
    "!!python/name:CANARY.evil",
    "!!python/name:os.system",
    "!!python/module:CANARY",
    "!!python/tuple [1, 2]",
    "!!python/bytes aGk=",
    "!!python/dict {a: 1}",
    "!!python/long 1",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [MARKER]",
    "!ruby/object:Gem::Installer {i: x}",
    "!env ${HOME}",
    "!include /etc/passwd",
    "!call:os.mkdir [MARKER]",
]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that marks its import, on the path; returns the marker."""
    marker = tmp_path / "was_here"
    (tmp_path / "modules").mkdir()
    text = f"import os; os.mkdir({str(marker)!r})\nclass Evil: pass\n"
    (tmp_path / "modules" / f"{CANARY}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    return marker


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    """What each stage says to such a file; all must refuse it, quickly."""
    path = tmp_path / "evil.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    said = []
    for schema in SCHEMAS:
        start = time.process_time()
        with pytest.raises(ConfigError) as caught:
            load(schema, path, overrides)
        assert time.process_time() - start < 20
        assert len(str(caught.value)) < 20_000
        said.append(str(caught.value))
    assert CANARY not in sys.modules
    return said[0]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "text",
    [
        "TAG",
        "run: TAG",
        "run: {name: TAG}",
        "steps: [TAG]",
        "? TAG\n: 1",
        "deepspeed: {extra: TAG}",
    ],
)
def test_tags_are_not_obeyed(tag: str, text: str, trap: Path, tmp_path: Path) -> None:
    tag = tag.replace("MARKER", str(trap)).replace("CANARY", CANARY)
    refusal(tmp_path, text.replace("TAG", tag))
    assert not trap.exists()
    refusal(tmp_path, "steps: 1\n", f"run.name={tag}")
    refusal(tmp_path, "steps: 1\n", f"run={tag}")
    assert not trap.exists()


def laughs(depth: int, wide: int = 9) -> str:
    lines = ['a0: &a0 ["x"]']
    for level in range(1, depth):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * wide)}]")
    return "\n".join(lines)


BOMBS: dict[str, str | bytes] = {
    "a billion laughs": laughs(12),
    "an alias of itself": "a: &a [*a]",
    "a merge of itself": "a: &a\n  <<: *a\n",
    "merges": "a: &a {b: 1}\nc: {<<: [*a, *a, *a]}",
    "deep lists": "a: " + "[" * 100_000,
    "deep closed lists": "a: " + "[" * 3000 + "]" * 3000,
    "deep maps": "a: " + "{a: " * 3000 + "1" + "}" * 3000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(1400)),
    "deep sequences": "- " * 20_000 + "1",
    "a large file": b"a: " + b"x" * MAX_CONFIG_BYTES,
    "many keys": "\n".join(f"k{n}: 1" for n in range(5_000)),
    "a large number": "steps: " + "9" * 100_000,
    "a large exponent": "optim: {lr: 1e999999999}\nsteps: 1",
    "not a number": "optim: {lr: .nan}\nsteps: 1",
    "a long key": "x" * 500_000 + ": 1",
    "a thousand documents": "---\na: 1\n" * 1000,
    "NUL": b"steps: \0",
    "not UTF-8": b"steps: \xff\xfe",
    "UTF-16": "steps: 1".encode("utf-16"),
    "a surrogate": "steps: \ud800",
    "escapes": 'steps: "\\uD800\\x00"',
    "a list": "- 1",
    "a word": "word",
    "a number": "12",
    "an open quote": 'steps: "',
    "a tab": "steps:\n\t- 1",
    "a directive": "%YAML 9.9\n---\nsteps: 1",
    "a tag directive": "%TAG !! tag:yaml.org,2002:python/\n---\nsteps: !!module canary",
    "keys twice": "steps: 1\nsteps: 2",
    "nested keys twice": "run: {name: a, name: b}",
    "quoted keys twice": "steps: 1\n'steps': 2",
    "a null key": "~: 1",
    "a list as key": "[1, 2]: 3",
    "a map as key": "{a: 1}: 3",
    "a number as key": "1: 3",
    "a boolean as key": "true: 3",
    "unknown keys": "stepz: 1",
    "dotted keys": "run.name: x",
    "attributes": "__class__: x",
    "methods": "model_dump: x",
    "pydantic's own": "model_config: {extra: allow}",
    "targets": "_target_: os.system\n_args_: [x]",
    "components": "run: {_component_: os.system}",
    "an empty key": '"": 1',
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_odd_files(name: str, trap: Path, tmp_path: Path) -> None:
    refusal(tmp_path, BOMBS[name])
    assert not trap.exists()


@pytest.mark.parametrize(
    "override",
    [
        *("run", "=x", "run.=x", ".=x", "..a=1", "a..b=1", "run.name.x.y=1", "steps=[1"),
        *("steps=*a", "steps=&a 1", "__class__.x=1", "run.__init__=1", "x=" + "[" * 5000),
        *(".".join("a" * 3000) + "=1", "steps=1\nrun: {name: x}", "steps=" + "9" * 10_000),
        "steps={a: b}",
    ],
)
def test_overrides(override: str, trap: Path, tmp_path: Path) -> None:
    refusal(tmp_path, "precision: fp99\n", override)
    assert not trap.exists()


WORDS = ["run", "name", "steps", "model", "optim", "lr", "{", "}", "[", "]", ":", ": ", "- ", "\n"]
WORDS += ["  ", "&a", "*a", "!!python/module:os", "!", "|", ">", '"', "'", "#", "?", "~", "1e9"]
WORDS += ["null", "true", "---", "...", "<<", "%", "@", "`", ",", "\t", "é", "\x85", "0x1", "-"]


def test_random_files(tmp_path: Path, trap: Path) -> None:
    """Two thousand files of YAML's own words, and cut and flipped ones."""
    draw = random.Random(5)
    good = (Path(__file__).parents[2] / "pretrain/configs/demo.yaml").read_bytes()
    path = tmp_path / "evil.yaml"
    taken, lengths = 0, []
    for number in range(2000):
        if number % 2:
            text: Any = "".join(draw.choice(WORDS) for _ in range(draw.randint(1, 40))).encode()
        else:
            text = bytearray(good)
            for _ in range(draw.randint(1, 6)):
                text[draw.randrange(len(text))] = draw.randrange(256)
        path.write_bytes(text)
        try:
            load(PretrainConfig, path)
            taken += 1
        except ConfigError as error:
            lengths.append(len(str(error)))
    assert min(lengths) > 0
    assert max(lengths) < 20_000
    assert taken < 400  # a changed comment or number is a config
    assert not trap.exists()
