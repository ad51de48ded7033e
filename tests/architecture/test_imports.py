"""Who may import whom: the table of CONTRIBUTING.md, from the imports themselves."""

import importlib.metadata
import subprocess
import sys

import pytest

from tests.architecture.source import ROOMS, ROOT, sources
from tests.processes import environment

MAY_IMPORT = {
    "model": set(),
    "runtime": set(),
    "data_prep": {"runtime"},
    "pretrain": {"model", "runtime", "data_prep"},
    "finetune": {"model", "runtime", "data_prep"},
    "launch": {"model", "runtime", "data_prep", "pretrain", "finetune"},
}

# Each of these packages is known to one place only.
ONE_PLACE = {
    "deepspeed": ("runtime/engine.py",),
    "transformers": ("model/hf/",),
    "triton": ("model/kernels/",),
    "accelerate": ("finetune/",),
    "sklearn": ("finetune/metrics.py", "finetune/report/baseline.py", "finetune/use/retrieval.py"),
    "matplotlib": ("launch/report/",),
    "tensorboard": ("runtime/sinks/tensorboard.py",),
    "yaml": ("runtime/config.py", "runtime/yaml_documents.py"),
    "psutil": ("runtime/metrics.py",),
    "jieba": ("pretrain/objectives/segmenter.py",),
    "bitsandbytes": ("finetune/adapters/quantized.py",),
    "datasets": ("data_prep/readers/",),
    "fsspec": ("data_prep/files.py",),
    "ftfy": ("data_prep/clean/",),
    "lm_eval": ("pretrain/scoring/harness.py",),
    "gigatoken": ("data_prep/tokenizer_fast.py",),
    "onnxruntime": ("finetune/use/export.py",),
    "opencc": ("data_prep/clean/",),
    "optuna": ("finetune/search/study.py",),
    "py3langid": ("data_prep/clean/",),
    "pyarrow": ("data_prep/readers/",),
    "peft": ("finetune/adapters/",),
    "ray": ("data_prep/executors/ray.py",),
    "sentencepiece": ("data_prep/tokenizer_sentencepiece.py",),
    "torchao": ("model/float8.py",),
    "trafilatura": ("data_prep/clean/",),
    "wandb": ("runtime/sinks/wandb.py",),
    "warcio": ("data_prep/readers/",),
    "zstandard": ("data_prep/",),
}

TORCH_FREE = [
    "data_prep.config",
    "data_prep.curriculum",
    "data_prep.naming",
    "data_prep.order",
    "data_prep.packing",
    "data_prep.run_order",
    "data_prep.samples",
    "data_prep.shards",
    "data_prep.pipeline",
    "data_prep.verify",
    "data_prep.which",
    "data_prep.workers",
    "finetune.config",
    "finetune.multitask.config",
    "finetune.tasks",
    "launch.__main__",
    "launch.check.advice",
    "launch.check.other_stages",
    "launch.check.pretraining",
    "launch.check.stage",
    "launch.estimate.memory",
    "launch.estimate.step_time",
    "launch.plan.command",
    "launch.plan.compare",
    "launch.cluster.deepspeed",
    "launch.cluster.kubernetes",
    "launch.cluster.local",
    "launch.cluster.mpi",
    "launch.cluster.network",
    "launch.cluster.probe",
    "launch.cluster.ssh",
    "launch.cluster.slurm",
    "launch.cluster.start",
    "launch.cluster.torchrun",
    "launch.report.command",
    "launch.report.serve",
    "launch.scaling.command",
    "launch.supervise",
    "model.config",
    "model.describe",
    "model.detokenize",
    "model.flops",
    "model.hf.architecture",
    "model.hf.manifest",
    "model.memory",
    "model.presets",
    "pretrain.config",
    "pretrain.objectives",
    "runtime.checkpoint",
    "runtime.checkpoint.__main__",
    "runtime.config",
    "runtime.deepspeed_config",
    "runtime.legality",
    "runtime.progress",
    "runtime.launcher",
    "runtime.records",
    "runtime.redaction",
    "runtime.sections",
    "runtime.signals",
    "runtime.watcher",
]


def test_the_import_table() -> None:
    for source in sources():
        for module, line in source.imports():
            room = module.split(".")[0]
            if room in ROOMS and room != source.room:
                assert room in MAY_IMPORT[source.room], f"{source.name}:{line} imports {module}"


def test_launch_imports_only_configs_of_the_stages() -> None:
    allowed = {
        "data_prep.config",
        "data_prep.input_config",
        "data_prep.shards",
        "data_prep.verify",
        "finetune.config",
        "finetune.multitask.config",
        "model.config",
        "model.describe",
        "model.flops",
        "model.hf.config",
        "model.memory",
        "model.presets",
        "pretrain.architecture",
        "pretrain.branch",
        "pretrain.config",
        "pretrain.objectives.traits",
        "pretrain.sections",
        "pretrain.supply",
    }
    for source in sources("launch"):
        if source.name == "launch/scaling/worker.py":
            continue  # a training process itself, as launch/pretrain.sh is
        for module, line in source.imports():
            if module.split(".")[0] in {"data_prep", "finetune", "pretrain", "model"}:
                of_config = any(module == a or module.startswith(f"{a}.") for a in allowed)
                assert of_config, f"{source.name}:{line} imports {module}"


def test_packages_known_to_one_place() -> None:
    for source in sources():
        for module, line in source.imports():
            package = module.split(".")[0]
            if package == "torch" and "tensorboard" in module:
                package = "tensorboard"
            places = ONE_PLACE.get(package)
            allowed = places is None or source.name.startswith(places)
            assert allowed, f"{source.name}:{line} imports {module}; it belongs to {places}"


def test_accelerate_and_tokenizers_have_few_homes() -> None:
    homes = {
        (module.split(".")[0], source.name)
        for source in sources()
        for module, _ in source.imports()
        if module.split(".")[0] == "accelerate"
    }
    assert len(homes) == 1


@pytest.mark.parametrize("module", TORCH_FREE)
def test_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, timeout=60)
    assert done.returncode == 0, f"importing {module} imports torch"


def test_no_installed_distribution_has_our_names() -> None:
    """Flat packages (docs/adr/0001) only work while nobody else installs `model` or `launch`."""
    owners = importlib.metadata.packages_distributions()
    for room in ROOMS:
        assert set(owners.get(room, [])) <= {"ingot"}, f"{room} is also installed by {owners[room]}"
