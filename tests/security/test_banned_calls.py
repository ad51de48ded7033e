"""X6: the gate finds nothing in the code, and finds what it should."""

import ast

import pytest

from tests.architecture.source import ROOMS, sources
from tests.security.gate import READS_PICKLES, offences

# They measure what peers do: torch.save and its like under faults, with files that they wrote
# themselves, and transformers' Trainer on a local directory.
PEERS = (
    "benchmarks/fault_peers.py",
    "benchmarks/faults.py",
    "benchmarks/finetune_throughput.py",
)


def code():
    return [s for s in sources(*ROOMS, "benchmarks") if s.name not in PEERS]


def test_nothing_in_the_code_runs_what_a_file_says() -> None:
    checked = code()
    assert len(checked) > 150
    found = [line for source in checked for line in offences(source.name, source.tree)]
    assert found == []


def test_pickles_are_read_where_it_is_said_they_are() -> None:
    readers = {
        source.name
        for source in code()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    }
    assert readers == READS_PICKLES


BAD = [
    "import pickle",
    "from pickle import loads",
    "import dill as d",
    "from cloudpickle import load",
    "import shelve",
    "import marshal",
    "from multiprocessing.connection import Listener",
    "from multiprocessing import connection",
    "from multiprocessing.managers import BaseManager",
    "import torch.distributed.rpc as rpc",
    "import runpy",
    "import builtins",
    "import hydra",
    "eval(x)",
    "exec(x)",
    "compile(x, '', 'exec')",
    "__import__(x)",
    "import importlib; importlib.import_module(x)",
    "from importlib import import_module\nimport_module(x)",
    "importlib.import_module('pickle')",
    "importlib.import_module('os', x)",
    "importlib.import_module('.os', package=x)",
    "importlib.util.spec_from_file_location('a', x)",
    "spec.loader.exec_module(module)",
    "import os; os.system(x)",
    "from os import system",
    "import os as o",
    "os.popen(x)",
    "subprocess.run('ls ' + x)",
    "subprocess.run(f'ls {x}')",
    "subprocess.run('ls')",
    "subprocess.Popen(' '.join(x))",
    "subprocess.run(shlex.join(x))",
    "subprocess.run(args=x)",
    "subprocess.run([x], shell=True)",
    "subprocess.run([x], shell=flag)",
    "subprocess.getoutput(x)",
    "from subprocess import run",
    "asyncio.create_subprocess_shell(x)",
    "import yaml; yaml.load(x, Loader=yaml.SafeLoader)",
    "yaml.unsafe_load(x)",
    "yaml.full_load(x)",
    "yaml.load_all(x)",
    "from yaml import load",
    "archive.extractall(x)",
    "shutil.unpack_archive(x)",
    "tempfile.mktemp()",
    "torch.load(x)",
    "torch.load(x, weights_only=True)",
    "torch.load(x, weights_only=False)",
    "from torch import load",
    "torch.save(x, y)",
    "torch.jit.load(x)",
    "torch.hub.load(x, y); import torch.hub",
    "torch.serialization.add_safe_globals([x])",
    "torch.serialization.safe_globals([x])",
    "np.load(x)",
    "numpy.load(x, allow_pickle=True)",
    "pandas.read_pickle(x)",
    "read(x, allow_pickle=True)",
    "load(x, trust_remote_code=True)",
    "load(x, trust_remote_code=options.trust)",
    "AutoModel.from_pretrained(x)",
    "huggingface_hub.snapshot_download(x)",
    "dist.all_gather_object(a, b)",
    "dist.broadcast_object_list(a)",
    "dist.send_object_list(a)",
    "gather = dist.gather_object",
    "f.__globals__['x']",
]


@pytest.mark.parametrize("text", BAD)
def test_the_gate_sees(text: str) -> None:
    assert list(offences("runtime/x.py", ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)",
        "torch.load(x, weights_only=True, **more)",
        "torch.load(x, weights_only=True, pickle_module=p)",
    ],
)
def test_also_where_pickles_may_be_read(text: str) -> None:
    for file in READS_PICKLES:
        assert list(offences(file, ast.parse(text)))
        assert not list(offences(file, ast.parse("torch.load(x, weights_only=True)")))


@pytest.mark.parametrize(
    "text",
    [
        "block.compile()",
        "net.eval()",
        "re.compile(x)",
        "subprocess.run([git, 'status'])",
        "subprocess.run([x], shell=False)",
        "yaml.safe_load(x)",
        "json.loads(x)",
        "import multiprocessing",
        "importlib.import_module('torch.nn')",
        "from torch import nn",
        "load_pretrained(x)",
    ],
)
def test_the_gate_lets_pass(text: str) -> None:
    assert list(offences("runtime/x.py", ast.parse(text))) == []
