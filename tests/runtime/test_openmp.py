"""How long OpenMP's threads spin before they sleep, unless the user says so."""

import pytest

from tests.processes import run

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ASK = f"import runtime, os; print([os.environ.get(n) for n in {NAMES}])"


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, ["PASSIVE", "16000"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", None]),
    ],
)
def test_threads_sleep_soon_unless_told_otherwise(
    given: dict[str, str], want: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    status, output = run(["-c", ASK], **given)
    assert (status, output.strip()) == (0, str(want))


@pytest.mark.parametrize("module", ["pretrain.train", "finetune.train"])
def test_it_is_said_before_torch_is_loaded(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP reads its environment when it is loaded."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = f"""
import builtins, importlib, os
own = builtins.__import__
def told(name, *rest, **named):
    if name.split(".")[0] == "torch" and "OMP_WAIT_POLICY" not in os.environ:
        raise SystemExit("torch comes first")
    return own(name, *rest, **named)
builtins.__import__ = told
importlib.import_module({module!r})
"""
    status, output = run(["-c", code])
    assert status == 0, output
