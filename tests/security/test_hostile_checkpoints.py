"""X1: checkpoints from an attacker, who can also write a manifest that agrees with them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.hf import CheckpointError, load_pretrained
from model.hf.convert import import_model
from model.hf.verify import verify as check_model
from runtime.checkpoint import newest_verified
from runtime.checkpoint.format import MANIFEST
from runtime.checkpoint.reader import TrainingState
from runtime.errors import UserError
from tests.faults.runs import Runs
from tests.security.hostile import FORMATS, header_attacks, raw_pickle, sign, torch_zip

Change = Callable[[Path, Path], None]  # a checkpoint's directory, and the marker
NAME = "model.norm.weight"
SLICE = "trunk.final_norm.weight|master|0"


def put(name: str, make: Callable[[Path], bytes]) -> Change:
    def change(directory: Path, marker: Path) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(make(marker))

    return change


def edit(name: str, **values: Any) -> Change:
    """Set keys of a JSON file, `a__b` for b in a."""

    def change(directory: Path, _: Path) -> None:
        content = json.loads((directory / name).read_text())
        for dotted, value in values.items():
            at = content
            *parents, last = dotted.split("__") if not dotted.startswith("_") else [dotted]
            for parent in parents:
                at = at[parent]
            at[last] = value
        (directory / name).write_text(json.dumps(content))

    return change


def also(*changes: Change) -> Change:
    def change(directory: Path, marker: Path) -> None:
        for one in changes:
            one(directory, marker)

    return change


def remove(name: str) -> Change:
    return lambda directory, _: (directory / name).unlink()


def code(directory: Path, marker: Path) -> None:
    for name in ("modeling_evil.py", "tokenization_evil.py", "conftest.py", "__init__.py"):
        (directory / name).write_text(f"import os; os.mkdir({str(marker)!r})")


def index(**weight_map: str) -> Change:
    def change(directory: Path, _: Path) -> None:
        (directory / "model.safetensors").rename(directory / "weights.safetensors")
        content = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


STATE = "training/state.json"
OPTIMIZER = "training/optimizer_00000.safetensors"
MODEL = {"load", "import", "check"}
TRAINING = {"state", "resume"}
EXECUTED = {"auto_map": {"AutoModel": "modeling_evil.Evil"}}


def slots() -> Iterator[tuple[str, Change, set[str]]]:
    """A name, what is done, and who must refuse it; whoever else must be unmoved."""
    for kind, make in FORMATS.items():
        yield f"{kind} as model.safetensors", put("model.safetensors", make), MODEL
        resume = {"resume"} if kind == "torch" else set()  # which takes a second each
        yield f"{kind} as optimizer slices", put(OPTIMIZER, make), {"state"} | resume
        yield f"{kind} as state.json", put(STATE, make), {"state"} | resume
        yield f"{kind} as config.json", put("config.json", make), MODEL | resume
        yield f"{kind} as MANIFEST.json", put(MANIFEST, make), {"newest", "check"} | resume
        generation = put("generation_config.json", make)
        yield f"{kind} as generation_config.json", generation, {"load", "import"}
        yield f"{kind} as tokenizer.json", put("tokenizer.json", make), {"check"}
        yield f"{kind} as tokenizer_config.json", put("tokenizer_config.json", make), set()
        yield f"{kind} beside the weights", put("pytorch_model.bin", make), set()
        yield (
            f"{kind} instead of the weights",
            also(put("pytorch_model.bin", make), remove("model.safetensors")),
            MODEL,
        )
        names = ("rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin")
        yield f"{kind} of a Trainer", also(*(put(name, make) for name in names)), set()
        names = (".metadata", "__0_0.distcp", "training/.metadata", "training/__0_0.distcp")
        yield f"{kind} of torch's checkpoint", also(*(put(name, make) for name in names)), set()
        names = ("latest", "global_step2/mp_rank_00_model_states.pt", "zero_to_fp32.py")
        yield f"{kind} of DeepSpeed", also(*(put(name, make) for name in names)), set()
    wrong = put("model.safetensors.index.json", raw_pickle)
    yield "an index of pickle", also(wrong, remove("model.safetensors")), MODEL
    yield "an index with a path", index(a="../../evil.safetensors"), MODEL
    yield "an absolute index", index(a="/etc/passwd"), MODEL
    yield "an index of pickles", also(index(a="evil.bin"), put("evil.bin", torch_zip)), MODEL
    ours = MODEL | {"resume"}
    yield "code beside the config", also(code, edit("config.json", **EXECUTED)), ours
    yield "code for the tokenizer", also(code, edit("tokenizer_config.json", **EXECUTED)), set()
    yield "code alone", code, set()
    evil = {"_attn_implementation_internal": "evil/kernel", "_attn_implementation": "evil/kernel"}
    yield "an attention implementation", also(code, edit("config.json", **evil)), set()
    yield "trust in the file", edit("config.json", trust_remote_code=True), set()
    yield "a class of os", edit("config.json", architectures=["os.system"]), set()
    yield "a model type with a path", edit("config.json", model_type="../evil"), ours
    called = {"_target_": "os.system", "_args_": ["x"]}
    yield "a target to call", edit(STATE, config=called), {"resume"}
    for key, value in (("losses", ["x"]), ("losses", 3), ("lr_factor", "x"), ("rollbacks", 1.5)):
        state = edit(STATE, health={key: value})
        yield f"a health whose {key} are {value}", state, {"resume"}
    yield "a health of text", edit(STATE, health="x"), {"resume"}
    yield "skipped windows of text", edit(STATE, loader__skipped=[["a", "b"]]), {"resume"}
    yield "a config of tags", edit(STATE, config="!!python/object/apply:os.system [x]"), TRAINING
    yield "a loader of numbers", edit(STATE, loader=3), TRAINING
    yield "no loader", edit(STATE, loader=None), TRAINING
    yield "a step of text", edit(STATE, step="4"), TRAINING
    yield "another step", edit(STATE, step=10**6), TRAINING
    yield "steps of text", edit(STATE, optimizer_steps="os.system"), TRAINING
    yield "a negative count", edit(STATE, tokens_seen=-5), TRAINING
    yield "a huge state", put(STATE, lambda _: b" " * (17 * 2**20) + b"{}"), TRAINING
    yield "a deep state", put(STATE, lambda _: b'{"a":' * 50000 + b"1" + b"}" * 50000), TRAINING
    yield (
        "a template that looks around",
        edit(
            "tokenizer_config.json", chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"
        ),
        set(),
    )
    yield "a loader's step of text", edit(STATE, loader__step="x"), {"resume"}
    for name in ("", "x", "a|b", "a|b|c|d", "a|master|-4", "a|master|1e9", "a|master|٣"):
        odd = put(OPTIMIZER, lambda _, name=name: _slice(name))
        yield f"a slice called {name!r}", odd, {"state"}
    for shape, dtype in (([4, 4], "F32"), ([], "F32"), ([16], "I32"), ([64], "U8")):
        odd = put(OPTIMIZER, lambda _, s=shape, d=dtype: _slice(SLICE, s, d))
        yield f"a slice of {dtype} {shape}", odd, {"state"}


def _slice(name: str, shape: list[int] | None = None, dtype: str = "F32") -> bytes:
    from tests.security.hostile import entry, safetensors

    size = 64 if shape != [] else 4
    return safetensors(
        {name: entry(0, size, [16] if shape is None else shape, dtype)}, b"\0" * size
    )


ATTACKS = {name: (change, refusers) for name, change, refusers in slots()}


def outcome(action: Callable[[], Any]) -> str:
    """The line that an action ends with, or nothing; any other error is a failure of the test."""
    try:
        action()
    except (UserError, CheckpointError) as error:
        line = str(error)
    else:
        return ""
    assert line, "an error that says nothing"
    assert "\n" not in line
    return line


def read_everything(checkpoint: Path) -> None:
    """What a resume asks for."""
    state = TrainingState(checkpoint)
    for key in ("master", "exp_avg", "exp_avg_sq"):
        state.read("trunk.final_norm.weight", key, 0, 16)


def outcomes(checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    def check() -> None:
        problems = [line for check in check_model(checkpoint) for line in check.problems]
        if problems:
            raise UserError(" ".join(problems[0].split()))

    return {
        "newest": outcome(lambda: newest_verified(checkpoint.parent, lambda _: None)),
        "load": outcome(lambda: load_pretrained(checkpoint)),
        "import": outcome(lambda: import_model(checkpoint, tmp_path / "imported")),
        "check": outcome(check),
        "state": outcome(lambda: read_everything(checkpoint)),
    }


@pytest.fixture
def attacked(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the good run's directory."""
    return Path(shutil.copytree(runs.path("good"), tmp_path / "run"))


def resume(runs: Runs, run_dir: Path) -> tuple[int, str]:
    """Start the run again; returns its exit status and what it printed."""
    config = runs.directory / "good.yaml"
    more = (f"run.dir={run_dir}", "steps=3")
    run = runs.start(config, *more, ranks=1)
    return run.wait()[0], run[0].output()


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_executed(name: str, runs: Runs, attacked: Path, tmp_path: Path) -> None:
    change, refusers = ATTACKS[name]
    marker, checkpoint = tmp_path / "was_here", attacked / "checkpoints" / "step_00000002"
    change(checkpoint, marker)
    if MANIFEST not in name:
        sign(checkpoint)
    found = outcomes(checkpoint, tmp_path)
    for refuser in refusers - {"resume"}:
        assert found[refuser], f"{refuser} takes {name}"
    for unmoved in found.keys() - refusers:
        assert not found[unmoved], f"{unmoved} refuses {name}: {found[unmoved]}"
    assert not marker.exists()
    if "resume" in refusers:
        status, output = resume(runs, attacked)
        assert status in (1, 2), output
        assert "Traceback" not in output
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
    assert not marker.exists()


def test_the_attacks_would_work(tmp_path: Path) -> None:
    """On a reader that obeys."""
    import pickle

    import torch

    pickle.loads(raw_pickle(tmp_path / "a"))
    (tmp_path / "file").write_bytes(torch_zip(tmp_path / "b"))
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b").is_dir()
    assert len(ATTACKS) > 60


HEADERS = list(header_attacks("x", Path("y")))


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(name: str, attacked: Path, tmp_path: Path) -> None:
    """As weights and as optimizer slices, with a manifest that agrees."""
    marker, checkpoint = tmp_path / "was_here", attacked / "checkpoints" / "step_00000002"
    (checkpoint / "model.safetensors").write_bytes(header_attacks(NAME, marker)[name])
    (checkpoint / OPTIMIZER).write_bytes(header_attacks(SLICE, marker)[name])
    sign(checkpoint)
    found = outcomes(checkpoint, tmp_path)
    for refuser in ("load", "import", "check", "state"):
        assert found[refuser], f"{refuser} takes {name}"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("stretches", "is_good"),
    [
        ([(0, 16)], True),
        ([(8, 8), (0, 8)], True),
        ([(0, 12), (4, 12)], True),  # twice the same, which nobody writes, hides nothing
        ([(0, 8)], False),
        ([(8, 8)], False),
        ([(0, 6), (8, 8)], False),
        ([(0, 4), (12, 4), (4, 4)], False),
        ([(0, 8), (4, 2), (14, 2)], False),
        ([], False),
    ],
)
def test_no_number_comes_from_nowhere(
    stretches: list[tuple[int, int]], is_good: bool, attacked: Path
) -> None:
    """A hole in the slices must not be filled with what the memory held."""
    checkpoint = attacked / "checkpoints" / "step_00000002"
    (checkpoint / OPTIMIZER).unlink()
    values = torch.arange(16.0) + 1
    for number, (start, numel) in enumerate(stretches):
        name = f"trunk.final_norm.weight|master|{start}"
        file = checkpoint / "training" / f"optimizer_{number:05d}.safetensors"
        save_file({name: values[start : start + numel].clone()}, file)
    state = TrainingState(checkpoint)
    if is_good:
        assert state.read("trunk.final_norm.weight", "master", 0, 16).tolist() == values.tolist()
        assert (
            state.read("trunk.final_norm.weight", "master", 3, 7).tolist() == values[3:10].tolist()
        )
    else:
        with pytest.raises(UserError, match="of the 16 values asked for"):
            state.read("trunk.final_norm.weight", "master", 0, 16)
