"""Ranks share the files of a model: together they are those that one process writes alone."""

import json

import pytest

from model import save_pretrained
from tests.processes import run
from tests.runtime.export_worker import LIMIT, new_model


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_files_are_the_same_whoever_writes_them(tmp_path, ranks):
    net = new_model()
    save_pretrained(net, tmp_path / "alone", max_shard_bytes=LIMIT)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    shards = sorted(name for name in expected if name.endswith(".safetensors"))
    assert len(shards) >= 4
    status, output = run(["-m", "tests.runtime.export_worker", str(tmp_path / "ranks")], ranks)
    assert status == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"rank"')]
    assert len(lines) == 4 * ranks
    for stage in range(4):
        written = tmp_path / "ranks" / str(stage) / ".tmp_step_00000001"
        assert {p.name: p.read_bytes() for p in written.iterdir() if p.is_file()} == expected
    total = sum(p.nbytes for p in net.parameters())
    for line in lines:
        own = [name for name in line["wrote"] if name.endswith(".safetensors")]
        assert sorted(own) == shards[line["rank"] :: ranks]  # in turn
        if ranks > 1:  # no host holds the whole model: a packed matrix may be of two files
            assert line["held"] < 0.75 * total
        assert ("config.json" in line["wrote"]) == (line["rank"] == 0)
