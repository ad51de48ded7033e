"""What a run stores holds no secret, and is readable by its user alone."""

import json
import os
import stat
from pathlib import Path
from typing import Any, get_args, get_origin

import pydantic
import pytest
import yaml

from data_prep.config import DataPrepConfig
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from runtime.config import flat, load, to_yaml
from runtime.redaction import HIDDEN, redacted
from tests.processes import run

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "HF_TOKEN", "wandb-api-key", "password", "aws_secret", "token", "key"),
        *("my.auth", "db_passwd", "SSH_PASSPHRASE", "credentials"),
    ],
)
def test_values_of_secret_keys_are_hidden(name: str) -> None:
    assert redacted({"comet": [{name: SECRET}, {name: {"deep": SECRET}}]}) == {
        "comet": [{name: HIDDEN}, {name: HIDDEN}]
    }
    assert redacted({name: None}) == {name: None}


@pytest.mark.parametrize(
    "name",
    ["tokens", "eos_token_id", "text_keys", "monkey", "key_frames", "authors", "num_tokens"],
)
def test_other_keys_stay(name: str) -> None:
    assert redacted({name: 5}) == {name: 5}


def test_credentials_in_addresses_are_hidden() -> None:
    assert redacted(f"https://me:{SECRET}@host/x") == f"https://{HIDDEN}@host/x"
    assert redacted("https://host/a@b") == "https://host/a@b"


def free_form(schema: type[pydantic.BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every key of a config that takes whatever is written, with its field."""
    found: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        kinds = [info.annotation, *get_args(info.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                found |= free_form(kind, f"{prefix}{name}.")
            elif dict in (kind, get_origin(kind)) or kind in (Any, object):
                found[f"{prefix}{name}"] = info
    return found


def test_every_free_form_key_is_redacted() -> None:
    found = {
        k: v
        for c in (PretrainConfig, FinetuneConfig, DataPrepConfig)
        for k, v in free_form(c).items()
    }
    # Class names with numbers: nothing that could be a secret.
    assert list(found) == ["deepspeed.extra", "robust.class_weights"]
    serializers = [m for m in found["deepspeed.extra"].metadata if hasattr(m, "func")]
    assert [m.func for m in serializers] == [redacted]


def test_own_keys_with_such_names_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("input: {paths: [a], text_key: body}\noutput: out\ntokenizer: {path: t}\n")
    assert load(DataPrepConfig, path).model_dump(mode="json")["input"]["text_key"] == "body"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with a secret in its config, an environment, and loader processes."""
    from tests.corpus import prepare_corpus

    root = tmp_path_factory.mktemp("secret")
    data = prepare_corpus(root / "corpus", documents=60)
    settings = {
        "run": {"name": "tiny", "dir": str(root / "run")},
        "model": {"preset": None, "family": "llama", "n_layers": 1, "n_heads": 2}
        | {"n_kv_heads": 1, "d_model": 16, "max_seq_len": 64},
        "data": {"train": str(data), "seq_len": 32, "workers": 1},
        "batch": {"global_batch_size": 4},
        "steps": 4,
        "precision": "fp32",
        "checkpoint": {"every_steps": 2},
        "evaluate": {"every_steps": 2, "max_sequences": 4},
        "log": {"every_steps": 1},
        "deepspeed": {"extra": {"comet": {"enabled": False, "api_key": SECRET}}},
    }
    config = root / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings))
    mask = os.umask(0o022)  # what most people have
    try:
        for steps in (2, 4):
            status, output = run(
                ["-m", "pretrain", str(config), f"steps={steps}", "schedule.kind=constant"],
                2,
                COMET_API_KEY=SECRET,
            )
            assert status == 0, output
            assert SECRET not in output
    finally:
        os.umask(mask)
    (root / "run" / "output.txt").write_text(output)
    (root / "run" / "output.txt").chmod(0o600)
    return root


def test_no_file_of_a_run_holds_the_secret(stored: Path) -> None:
    files = [path for path in (stored / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "state.json", "MANIFEST.json"} <= {path.name for path in files}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    state = json.loads((stored / "run/checkpoints/step_00000004/training/state.json").read_text())
    assert flat(state["config"])["deepspeed.extra.comet.api_key"] == HIDDEN
    config = load(PretrainConfig, stored / "tiny.yaml")
    assert config.deepspeed.extra["comet"]["api_key"] == SECRET  # DeepSpeed gets it
    assert HIDDEN in to_yaml(config)


def test_a_hidden_secret_is_no_change_at_a_resume(stored: Path) -> None:
    output = (stored / "run" / "output.txt").read_text()
    assert "changed: steps was 2, now 4" in output
    assert "api_key" not in output


def test_a_run_is_private_to_its_user(stored: Path) -> None:
    found = [stored / "run", *(stored / "run").rglob("*")]
    assert len(found) > 20
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} {mode:o}"
