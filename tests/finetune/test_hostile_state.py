"""A resume believes no part of a state, even where a manifest agrees with it (tests/security)."""

import json
import shutil

from runtime.checkpoint import list_checkpoints
from tests.finetune.toys import animal_texts, config_file, finetune, write_jsonl
from tests.processes import run
from tests.security.hostile import raw_pickle, sign

STATES = {
    "data": [3, {"train": 1, "dev": None}],
    "best_step": ["x", -1.5],
    "without_best": [None],
    "best_score": [[]],
    "step": [10**6],
    "tokens_seen": [-1],
    "optimizer_steps": ["x"],
    "config": ["x"],
}


def test_a_state_that_lies_is_refused_in_one_line(tmp_path):
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", animal_texts(24, 1))
    path = config_file(tmp_path, epochs=1)
    assert finetune(path) == 0
    (info,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    good = json.loads((info.path / "training" / "state.json").read_text())
    assert good["best_step"] > 0
    marker, jobs = tmp_path / "was_here", []
    states = [json.dumps({**good, k: v}).encode() for k, values in STATES.items() for v in values]
    states += [raw_pickle(marker), b'{"a":' * 5000]
    for number, state in enumerate([*states, json.dumps(good).encode()]):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "run", copy)
        step = copy / "checkpoints" / info.path.name
        (step / "training" / "state.json").write_bytes(state)
        sign(step)
        jobs.append([str(path), f"run.dir={copy}", "epochs=2"])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    worker = ["-m", "tests.pretrain.ingot_worker", "finetune", str(tmp_path / "jobs.json")]
    status, output = run(worker)
    assert status == 0, output
    *refused, taken = output.split("status ")[:-1]
    statuses = [line.split()[1] for line in output.splitlines() if line.startswith("status ")]
    assert len(refused) == len(states)
    assert set(statuses[:-1]) == {"1", "2"}, output
    assert statuses[-1] == "0", output
    for state, told in zip(states, refused, strict=True):
        assert told.count("error: ") == 1, (state, told)
        assert "Traceback" not in told
    assert "error: " not in taken
    assert not marker.exists()
