from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
import yaml

from runtime.config import (
    Config,
    ConfigError,
    Problem,
    key,
    load,
    nearest_key,
    print_help,
    rows,
    section,
    to_yaml,
)


class Optim(Config):
    lr: float = key(3e-4, "Peak learning rate", gt=0)
    name: Literal["adamw", "lion"] = key("adamw", "Which optimizer")


class Batch(Config):
    global_batch_size: int = key(32, "Sequences per step", unit="sequences", ge=1)


class Example(Config):
    optim: Optim = section(Optim, "The optimizer")
    batch: Batch = section(Batch, "The batch")
    steps: int = key(3, "Length")
    paths: list[str] = key(["a"], "Files")
    source: str | Optim = key("text", "A word or a section")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path | None, overrides: list[str] | None = None, check=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Example, path, overrides or [], check)
    assert caught.value.status == 2
    return caught.value.lines


def test_file_overrides_and_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {lr: 0.1}\nsteps: 7\n")
    config = load(Example, path, ["steps=9", "batch.global_batch_size=64"])
    assert (config.optim.lr, config.optim.name) == (0.1, "adamw")
    assert (config.steps, config.batch.global_batch_size) == (9, 64)


def test_yaml_is_read_as_written(tmp_path: Path) -> None:
    # YAML 1.1, PyYAML's default, reads these as the string '1e-4', 10 and False.
    config = load(Example, write(tmp_path, "optim: {lr: 1e-4}\nsteps: 012\npaths: [no, off]\n"))
    assert config.optim.lr == 1e-4
    assert config.steps == 12
    assert config.paths == ["no", "off"]
    assert load(Example, None, ["steps=1_000"]).steps == 1000


def test_every_mistake_at_once_with_place_and_mend(tmp_path: Path) -> None:
    path = write(tmp_path, "optim:\n  lrr: 1\n  name: adamv\nsteps: many\nlr: 1e-4\n")
    found = lines(path, [], lambda c: [Problem("batch.global_batch_size", "is wrong too")])
    text = "\n".join(found)
    assert f"{path}:2: optim.lrr: unknown key; did you mean optim.lr?" in text
    assert (
        f"{path}:3: optim.name: expected 'adamw' or 'lion'; got 'adamv'; did you mean adamw?"
        in text
    )
    assert f"{path}:4: steps: expected a valid integer" in text
    assert f"{path}:5: lr: unknown key; did you mean optim.lr?" in text
    assert "batch.global_batch_size: is wrong too" in text
    assert len(found) == 5


def test_check_does_not_repeat_a_key_that_is_already_wrong(tmp_path: Path) -> None:
    found = lines(write(tmp_path, "steps: x\n"), [], lambda c: [Problem("steps", "again")])
    assert len(found) == 1


def test_override_mistakes_name_the_command_line() -> None:
    assert lines(None, ["optim.lr=-1"])[0].startswith("command line: optim.lr: expected")
    assert "expected key.subkey=value" in lines(None, ["steps"])[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n- 2\n", "expected `key: value` lines"),
        ("steps: 1\nsteps: 2\n", "steps is written twice"),
        ("steps: &a 1\nbatch: *a\n", "aliases"),
        ("steps: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "a key must be a plain word"),
        ("steps: \x07\n", "not valid YAML"),
        ("steps: !!int foo\n", "not valid YAML"),
        ("steps: " + "[" * 3000 + "]" * 3000, "more than 32 levels"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    found = lines(write(tmp_path, text))
    assert message in found[0]
    assert "example.yaml" in found[0]


def test_unreadable_files(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in lines(tmp_path / "absent.yaml")[0]
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"steps: \xff\n")
    assert "not UTF-8" in lines(binary)[0]
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 << 20))
    assert "is it a config?" in lines(large)[0]


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(Example, None).steps = 4


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("optim.lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("stepz", "steps"),
        ("qqq", None),
        ("optm", "optim"),
    ],
)
def test_nearest_key(written: str, meant: str | None) -> None:
    assert nearest_key(Example, written.split(".")) == meant


def test_help_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    print_help("usage: x", Example)
    text = capsys.readouterr().out
    for row in rows(Example):
        assert row.key in text
        assert row.meaning in text
    assert "int, default 32 sequences" in text
    assert "adamw|lion, default adamw" in text


def test_resolved_yaml_loads_to_the_same_config(tmp_path: Path) -> None:
    config = load(Example, None, ["optim.lr=1e-5", "paths=[x, 语料]"])
    text = to_yaml(config)
    assert "语料" in text
    assert load(Example, write(tmp_path, text)) == config
    assert yaml.safe_load(text)["optim"]["name"] == "adamw"


class Square(Config):
    kind: Literal["square"] = key("square", "A shape")
    side: float = key(..., "Length of a side", gt=0)


class Circle(Config):
    kind: Literal["circle"] = key("circle", "A shape")
    radius: float = key(1.0, "Half the width", gt=0)


class Drawing(Config):
    shapes: tuple[Annotated[Square | Circle, pydantic.Field(discriminator="kind")], ...] = key(())


def test_mistakes_in_a_list_of_sections_of_several_kinds(tmp_path: Path) -> None:
    text = "shapes:\n- kind: circel\n- kind: circle\n  radios: 2\n- {kind: square}\n- {side: 1}\n"
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(Drawing, path)
    assert caught.value.lines == [
        f"{path}:2: shapes.0: unknown kind 'circel'; did you mean circle?",
        f"{path}:4: shapes.1.radios: unknown key; did you mean radius?",
        f"{path}:5: shapes.2.side: is required and has no default",
        f"{path}:6: shapes.3: kind is missing; write kind: and which one it is",
    ]
    assert load(Drawing, write(tmp_path, "shapes:\n- kind: circle\n")).shapes == (Circle(),)


def test_a_key_written_twice_in_a_list_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "shapes:\n- kind: circle\n  kind: square\n")
    with pytest.raises(ConfigError, match=r"shapes\.0\.kind is written twice"):
        load(Drawing, path)
