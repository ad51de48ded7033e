"""Kubernetes' objects: valid by its own schemas, hostile words kept or refused, and they train."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from launch.__main__ import main
from pretrain.config import PretrainConfig
from runtime.config import load
from runtime.yaml_documents import documents_to_yaml
from tests.corpus import prepare_corpus
from tests.processes import ROOT, environment, free_port
from tests.tiny_run import write_config

VERSIONS = ("1.31", "1.35")
IMAGE = "registry.example:5000/team/ingot:1.0"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(
        tmp_path / "c.yaml",
        tmp_path / "run",
        tmp_path / "corpus",
        batch__micro_batch_size=1,
        run__dir="/data/runs/{name}",
    )


def documents(
    capsys: pytest.CaptureFixture[str], config: Path, *words: str, overrides: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    plain = ["--image", IMAGE, "--volume", "data:/data", "--print"]
    assert main(["kubernetes", *plain, *words, "--", str(config), *overrides]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--nodes", "4", "--gpus-per-node", "2"],
        [
            *("--namespace", "team-1", "--job-name", "big", "--volume", "corpus.v2:/corpus:ro"),
            *("--env", "NCCL_DEBUG=INFO", "--env", "N=1e3", "--env-from-secret", "wandb"),
            *("--node-selector", "nvidia.com/gpu.product=H100", "--grace", "900"),
            *("--cpu", "500m", "--memory", "1Ti", "--shared-memory", "64Gi"),
        ],
    ],
    ids=["least", "gpus", "all"],
)
def test_the_schemas_of_kubernetes_agree(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], version: str
) -> None:
    found = documents(capsys, config, *words)
    assert [document["kind"] for document in found] == ["ConfigMap", "Service", "Job"]
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_would_say_what_is_wrong(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = documents(capsys, config)[2]
    job["spec"]["completionmode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_pods_find_one_another_and_the_config(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--nodes", "4", "--gpus-per-node", "2", "--namespace", "team"]
    config_map, service, job = documents(capsys, config, *words)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert {d["metadata"]["namespace"] for d in (config_map, service, job)} == {"team"}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    # The controller of Jobs gives pods this label.
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"] == "run"
    command = container["command"]
    assert command[command.index("--master-addr") + 1] == "run-0.run"
    assert command[command.index("--master-port") + 1] == str(service["spec"]["ports"][0]["port"])
    (mounted,) = [m for m in container["volumeMounts"] if m["name"] == "config"]
    assert f"{mounted['mountPath']}/config.yaml" in command
    assert pod["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert config_map["data"]["config.yaml"] == config.read_text()
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    memory = next(v for v in pod["volumes"] if v["name"] == "shared-memory")
    assert memory["emptyDir"]["medium"] == "Memory"


def test_a_stop_is_no_failure_and_a_wrong_config_is_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the first matching rule decides."""
    spec = documents(capsys, config)[2]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    actions = {
        code: rule["action"]
        for rule in reversed(spec["podFailurePolicy"]["rules"])
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {2: "FailJob", 75: "Ignore", 143: "Ignore"}
    conditions = [r for r in spec["podFailurePolicy"]["rules"] if "onPodConditions" in r]
    assert [(c["action"], c["onPodConditions"][0]["type"]) for c in conditions] == [
        ("Ignore", "DisruptionTarget")
    ]
    assert spec["backoffLimitPerIndex"] == 3
    assert spec["maxFailedIndexes"] == 0
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 600


def test_nobody_is_root(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = documents(capsys, config, "--user", "1234")[2]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][k] for k in ("runAsUser", "runAsGroup", "fsGroup")} == {1234}
    context = pod["containers"][0]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def expanded(word: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a word of a command: $$ is $, $(NAME) a variable's value."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]),
        word,
    )


HOSTILE = [
    *("$(HOME)", "$$(HOME)", "$$$x", "$(id)"),
    *("`id`", "a: b", "- x", "#x", "'", '"', "\\", "a\nb: c"),
    *("é 中 😀", "{a: b}", "*x", "&x", "!!python/object:os.system", "---", "\u2028", "\x07", "1e3"),
    *("yes", "y", "null", "~", "0x10", "1_000", "012", "2026-11-24", "", " ", "%x", "@x", "|", ">"),
]


@pytest.mark.parametrize("word", HOSTILE)
def test_words_arrive_as_they_are(
    config: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    override = f"run.dir={json.dumps(f'/data/{word}')}"
    job = documents(capsys, config, "--env", f"X={word}", overrides=(override,))[2]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert expanded(container["command"][-1], {"HOME": "bad"}) == override
    (value,) = [v["value"] for v in container["env"] if v["name"] == "X"]
    assert expanded(value, {"HOME": "bad"}) == word


@pytest.mark.parametrize("word", [w for w in HOSTILE if w])
def test_yaml_of_either_age_reads_the_same(word: str) -> None:
    """Kubernetes reads YAML 1.1 with Go's additions, where y, 1e3 and 1_000 are no words."""
    text = documents_to_yaml([{"a": [word]}])
    assert yaml.safe_load(text) == {"a": [word]}
    item = text.partition("- ")[2]
    assert item[0] in "\"|'" or re.fullmatch(r"[A-Za-z][\w./-]+\n", item)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--nodes 0", "nodes: expected 1"),
        ("--namespace Team", "--namespace: 'Team' is no name"),
        ("--namespace a.b", "--namespace"),
        ("--namespace -x", "expected one argument"),
        ("--job-name 1e3", "beginning with a letter"),
        ("--job-name a_b", "--job-name"),
        (f"--job-name {'a' * 62}", "at most 61"),
        ("--image $(id)", "--image: expected"),
        ("--image Team/Ingot:1", "--image: expected"),
        ("--image ingot:1;id", "--image: expected"),
        ("--volume data", "--volume: expected CLAIM:/PATH"),
        ("--volume data:relative", "--volume: expected"),
        ("--volume data:/a/../etc", "--volume: expected"),
        ("--volume data:/a:rw", "--volume: expected"),
        ("--volume data:/", "--volume: expected"),
        ("--volume Data:/a", "--volume: 'Data' is no name"),
        ("--volume data:/etc/x", "the image's own"),
        ("--volume other:/data", "two are mounted at one path"),
        ("--env NAME", "--env: expected NAME=VALUE"),
        ("--env NODE_RANK=0", "NODE_RANK is the pod's own number"),
        ("--env A-B=1", "--env: expected"),
        ("--env-from-secret A", "--env-from-secret"),
        ("--node-selector gpu", "--node-selector: expected"),
        ("--node-selector gpu=$(id)", "--node-selector: expected"),
        ("--memory lots", "--memory: expected an amount"),
        ("--cpu 0", "--cpu: expected an amount"),
        ("--grace 5", "grace: expected 30"),
        ("--user 0", "user: expected 1"),
        ("--apply", "give --print or --apply"),
        ("--nodes 3 --gpus-per-node 1", "8 is not divisible"),
    ],
)
def test_mistakes_are_one_line(
    config: Path, options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["--image", IMAGE, "--volume", "data:/data", "--print"]
    try:
        status = main(["kubernetes", *plain, *options.split(), "--", str(config)])
    except SystemExit as left:  # argparse
        status = int(left.code or 0)
    assert status == 2
    assert told in capsys.readouterr().err


def test_checkpoints_are_on_a_volume(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["kubernetes", "--image", IMAGE, "--print"]
    assert main([*words, "--", str(config)]) == 2
    assert "is on no volume that pods can write (--volume: none)" in capsys.readouterr().err
    assert main([*words, "--volume", "d:/data:ro", "--", str(config)]) == 2
    assert "on no volume" in capsys.readouterr().err
    assert main([*words, "--volume", "d:/data", "--", str(config), "run.dir=/data/../x"]) == 2
    assert "on no volume" in capsys.readouterr().err


def test_kubectl_gets_what_is_printed(
    tmp_path: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["kubernetes", "--image", IMAGE, "--volume", "data:/data"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*words, "--apply", "--", str(config)]) == 2
    assert "kubectl is not here" in capfd.readouterr().err
    tool = tmp_path / "kubectl"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\nexec /bin/cat > {tmp_path}/sent\n')
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*words, "--apply", "--", str(config)]) == 0
    assert main([*words, "--print", "--", str(config)]) == 0
    assert capfd.readouterr().out == (tmp_path / "sent").read_text()
    assert (tmp_path / "words").read_text() == "apply --filename -\n"


def test_kubectl_reads_what_we_wrote(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the parser that a cluster has; `set env` also wants the types of its own objects."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    words = [f"--env=X{number}={word}" for number, word in enumerate(HOSTILE)]
    overrides = tuple(f"run.dir={json.dumps(f'/data/{word}')}" for word in HOSTILE)
    found = documents(capsys, config, *words, overrides=overrides)
    (ours,) = found[2]["spec"]["template"]["spec"]["containers"]
    for change, those in (("label read=true", found), ("set env READ=true", found[2:])):
        (tmp_path / "objects.yaml").write_text(documents_to_yaml(those))
        options = ["--local", "--filename", "objects.yaml", "--output", "json"]
        done = subprocess.run(
            ["kubectl", *change.split(), *options],
            cwd=tmp_path,
            env={**environment(), "KUBECONFIG": "/dev/null"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        read = _json_documents(done.stdout)
        assert [document["kind"] for document in read] == [d["kind"] for d in those]
        (container,) = read[-1]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ours["command"]
        values = {v["name"]: v.get("value", "") for v in container["env"]}
        assert values.items() >= {v["name"]: v.get("value", "") for v in ours["env"]}.items()
        if those is found:
            assert read[0]["data"] == found[0]["data"]


def _json_documents(text: str) -> list[dict[str, Any]]:
    """JSON objects, one after the other, or in a List."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        found += document.get("items", [document])
        text = text[end:]
    return found


@pytest.mark.slow
def test_the_pods_command_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pods' commands as Kubernetes expands them, on this machine."""
    corpus = prepare_corpus(tmp_path / "corpus", documents=60)
    changes: dict[str, Any] = {"steps": 4, "evaluate__every_steps": 0, "log__tensorboard": False}
    path = write_config(tmp_path / "c.yaml", tmp_path / "run", corpus, **changes)
    volume = f"data:{tmp_path}".replace("/tmp/", "/pods/")
    run_dir = f"run.dir={volume.partition(':')[2]}/run"
    options = ["--image", IMAGE, "--nodes", "2", "--volume", volume, "--print"]
    capsys.readouterr()
    assert main(["kubernetes", *options, "--", str(path), run_dir]) == 0
    job = list(yaml.safe_load_all(capsys.readouterr().out))[2]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    here = {
        "/etc/ingot/config.yaml": str(path),
        "python": sys.executable,
        "run-0.run": "127.0.0.1",
        "29400": str(free_port()),
        run_dir: f"run.dir={tmp_path}/run",
    }
    processes = []
    for rank in ("0", "1"):
        words = [expanded(word, {"NODE_RANK": rank}) for word in container["command"]]
        command = [here.get(word, word) for word in words]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,  # the image's working directory
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=150)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 × cpu" in outputs[0]
    assert (tmp_path / "run/checkpoints/step_00000004/MANIFEST.json").exists()
    assert load(PretrainConfig, tmp_path / "run/config.yaml").steps == 4
