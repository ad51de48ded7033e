"""The commands of the pages that a test does not run as they stand, each with its reason.

Everything that is on none of these lists runs word by word. test_commands.py proves that every
entry is used, and that what is said to be covered elsewhere is there.
"""

import re
import shlex
from typing import NamedTuple

from tests.processes import free_port

# So that training takes seconds: appended to commands that train. The path through the program is
# the same; what gets less is steps, sequences and layers.
_PRETRAIN = (
    "steps=2 tokens=null schedule.warmup_steps=1 batch.global_batch_size=2 "
    "batch.micro_batch_size=null model.n_layers=1 evaluate.max_sequences=4"
)
_FINETUNE = "steps=2 epochs=null schedule.warmup_steps=1 batch.global_batch_size=2"
_START = r"(?:deepspeed(?: --master_port \d+)?(?: --num_gpus \d+)?|torchrun --standalone .*?|bash) "


class Smaller(NamedTuple):
    """Commands that are run with a smaller setting."""

    pattern: str  # of the whole command
    append: str
    why: str


SMALLER = (
    Smaller(
        rf"(?:python -m launch supervise .*?-- )?{_START}launch/pretrain\.sh \S+\.yaml.*",
        _PRETRAIN,
        "a real run takes minutes to days",
    ),
    Smaller(r"python -m launch check my-gpt\.yaml", _PRETRAIN, "its run was made small"),
    Smaller(r"bash launch/scaling\.sh --ranks .*", "--ranks 1 --zero 1 --steps 1", "minutes"),
    Smaller(r"python -m launch local .*", _PRETRAIN, "the same"),
    Smaller(r"(?:WANDB_MODE=offline )?python -m pretrain \S+\.yaml.*", _PRETRAIN, "the same"),
    Smaller(
        rf"{_START}launch/finetune\.sh \S+\.yaml.*", _FINETUNE, "a real run takes minutes to hours"
    ),
)

# Words that are replaced in a command, and why.
_TWO = "two ranks on the CPU stand for eight GPUs"
REPLACED = {
    "--num_gpus 8": ("--num_gpus 2", _TWO),
    "--nproc-per-node 8": ("--nproc-per-node 2", _TWO),
    "/mnt/nvme": ("data", "a folder stands for the disk"),
}

# Started without the launcher in front, which costs seconds each time and is run by the others
# (README, docs/cluster.md, tests/launch/test_start.py).
LAUNCHED = re.compile(r"deepspeed (launch/(?:pretrain|finetune)\.sh .*)")


# Only printed: the hosts are not here. tests/launch runs them on real ones (network namespaces with
# sshd, a Slurm of one node) and validates what Kubernetes would be given.
PRINTED = re.compile(r"python -m launch (?:ssh|deepspeed|mpi|slurm|torchrun|kubernetes) .*")


class Covered(NamedTuple):
    """A command that is not run here."""

    where: str  # the file that runs it
    proof: str  # what stands there
    why: str


_CI = (".ci/run", "minutes; run by CI from a clean clone")
_DEMO = ("launch/demo.sh", "minutes; a stage of the demo, which CI runs")
COVERED = {
    "source .venv/bin/activate": Covered(
        "tests/docs/workshop.py", "environment()", "the commands here have its programs in PATH"
    ),
    "deepspeed --hostfile hosts.txt launch/pretrain.sh my-run.yaml": Covered(
        "tests/launch/test_several_hosts.py", '"deepspeed"', "needs hosts with ssh"
    ),
    "python -m launch network --hostfile hosts.txt --seconds 0 -- my-run.yaml": Covered(
        "tests/launch/test_hosts_ready.py", '"network", "--seconds", "0"', "needs hosts with ssh"
    ),
    "python -m launch network --hostfile hosts.txt": Covered(
        "tests/launch/test_network.py", "network", "needs hosts with ssh"
    ),
    "sbatch --nodes 4 --gpus-per-node 8 launch/pretrain.sh my-run.yaml": Covered(
        "tests/launch/cluster/test_slurm.py", "sbatch", "needs Slurm"
    ),
    "sbatch launch/pretrain.sh my-run.yaml": Covered(
        "tests/launch/cluster/test_slurm.py", "sbatch", "needs Slurm"
    ),
    "podman build -f launch/templates/Containerfile -t registry.example/ingot:1 .": Covered(
        "tests/launch/cluster/test_containerfile.py",
        "Containerfile",
        "needs podman and the network",
    ),
    "hf download google-bert/bert-base-uncased --local-dir models/bert-base-uncased": Covered(
        "tests/docs/made.py", "def write_models", "needs the network; a tiny one stands in"
    ),
    "bash launch/demo.sh": Covered(_CI[0], "bash launch/demo.sh", _CI[1]),
    "bash launch/test.sh": Covered(_CI[0], "bash launch/test.sh", _CI[1]),
    "bash launch/setup.sh && source .venv/bin/activate": Covered(
        _CI[0], "bash launch/setup.sh", _CI[1]
    ),
    "python -m pretrain evaluate runs/my-gpt --tasks hellaswag,arc_easy --online": Covered(
        "tests/pretrain/test_scoring.py", "--task-folder", "needs the network"
    ),
    "python -m launch report runs/my-gpt --serve": Covered(
        "tests/launch/test_report_serve.py", "--serve", "runs until it is stopped"
    ),
    "python -m finetune demo runs/my-task": Covered(
        "tests/finetune/test_demo.py", "make_server", "runs until it is stopped"
    ),
    "tensorboard --logdir runs/my-gpt/tensorboard": Covered(
        "tests/runtime/test_records.py", "tensorboard", "another project's server"
    ),
    "python -m pretrain my-gpt.yaml log.wandb=my-project": Covered(
        "tests/pretrain/test_samples.py", "wandb", "needs an account"
    ),
    "deepspeed launch/pretrain.sh my-gpt.yaml run.name=decay-200 run.branch_from="
    "runs/stable/checkpoints/step_00000200 schedule.decay_steps=40 steps=240": Covered(
        "tests/faults/test_branch.py", "run__branch_from", "its source was made small"
    ),
    "python -m data_prep demo": Covered(_DEMO[0], "python -m data_prep demo", _DEMO[1]),
    "deepspeed launch/pretrain.sh pretrain/configs/demo.yaml": Covered(
        _DEMO[0], "launch/pretrain.sh pretrain/configs/demo.yaml", _DEMO[1]
    ),
    "deepspeed launch/finetune.sh finetune/configs/demo.yaml": Covered(
        _DEMO[0], "launch/finetune.sh finetune/configs/demo.yaml", _DEMO[1]
    ),
    "python -m model generate runs/demo/pretrain --prompt 'def main(argv):'": Covered(
        _DEMO[0], "python -m model generate", _DEMO[1]
    ),
    "python -m launch report runs/demo": Covered(_DEMO[0], "python -m launch report", _DEMO[1]),
}


def python_words(command: str) -> list[str] | None:
    """What follows `python` where a command is only that; None where bash must read it."""
    launched = LAUNCHED.fullmatch(command)
    words = shlex.split(launched.group(1) if launched else command)
    if launched:
        return words
    is_plain = words[:1] == ["python"] and not re.search(r"[|&;<>$`]", command)
    return words[1:] if is_plain else None


def smaller(command: str) -> str:
    """The command as the test runs it."""
    if PRINTED.fullmatch(command):
        return command if " --print " in command else command.replace(" -- ", " --print -- ", 1)
    for words, (instead, _) in REPLACED.items():
        command = command.replace(words, instead)
    # Others may be training on this machine, by the launchers' usual port.
    command = re.sub(
        r"deepspeed (?=--num_gpus)", f"deepspeed --master_port {free_port()} ", command
    )
    for rule in SMALLER:
        if re.fullmatch(rule.pattern, command):
            return f"{command} {rule.append}"
    return command
