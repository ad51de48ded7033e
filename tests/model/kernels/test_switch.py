"""`Transformer.set_kernels` and the key `kernels`, where nothing can run a kernel."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from model import ModelConfig, build
from runtime.legality import Combination, check_tools
from runtime.sections import Parallel
from tests.processes import ROOT, environment

CONFIG = ModelConfig(
    **{"family": "qwen3", "n_layers": 1, "n_heads": 2, "d_model": 16, "vocab_size": 32},
    max_seq_len=16,
)


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "triton" or name in ("model.kernels.norm", "model.kernels.rotary"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)


def test_a_model_does_not_import_triton() -> None:
    code = (
        "import sys, torch; from model import ModelConfig, build\n"
        "before = 'triton' in sys.modules\n"
        "net = build(ModelConfig(family='llama', n_layers=1, n_heads=2, d_model=16,"
        " vocab_size=32, max_seq_len=8))\n"
        "net.trunk.set_kernels('torch'); ids = torch.zeros(1, 4, dtype=torch.int64)\n"
        "net(ids, targets=ids).loss.backward()\n"
        "sys.exit('model.kernels.norm' in sys.modules or (not before and 'triton' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, timeout=120)
    assert done.returncode == 0


def test_without_triton_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    without_triton(monkeypatch)
    net = build(CONFIG)
    with pytest.raises(ImportError, match=r"kernels: got triton.*pip install 'ingot\[kernels\]'"):
        net.trunk.set_kernels("triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    together = Combination(Parallel(), "bf16", False, "cuda", 1, "triton")
    (problem,) = check_tools(together)
    assert problem.key == "kernels"
    assert "pip install 'ingot[kernels]', or write torch" in problem.message


def test_tensors_on_a_cpu_are_refused() -> None:
    pytest.importorskip("triton")
    net: Any = build(CONFIG)
    net.trunk.set_kernels("triton")
    with pytest.raises(ValueError, match=r"expected a GPU; call set_kernels\('torch'\)"):
        net(torch.zeros(1, 4, dtype=torch.int64))
