"""`python -m finetune CONFIG.yaml [key=value …]`, behind `deepspeed launch/finetune.sh`."""

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import outcome
from runtime.errors import EXIT_OK, command, leave
from runtime.launcher import adopt_mpi
from runtime.signals import StopRequest

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig
    from finetune.multitask.config import MultitaskConfig

# name → module with main(arguments), and what it is for; imported when it is asked for.
_COMMANDS = {
    "predict": ("predict", "what a model says of every example of a file"),
    "report": ("report.run_command", "what a finished run has learned, as a page"),
    "merge": ("adapters.merge", "an adapter and its model as one directory"),
    "search": ("search.command", "the values of keys that score best on dev"),
    "seeds": ("search.seeds", "mean and deviation of the scores over seeds"),
    "kfold": ("search.kfold", "cross-validation"),
    "transfer-report": ("report.transfer_command", "pretrained, from scratch, and TF-IDF"),
    "evaluate": ("transfer.direct", "a model's scores on a file, also zero-shot"),
    "ensemble": ("transfer.ensemble", "several models as one"),
    "intents": ("use.intents", "which questions are out of scope"),
    "export": ("use.export", "ONNX, also with weights of 8 bits"),
    "prune": ("use.prune", "zeros in the place of the smallest weights"),
    "monitor": ("use.monitor", "do new texts look like the old?"),
    "demo": ("use.demo", "a page to try a model"),
}
USAGE = """\
usage: deepspeed launch/finetune.sh CONFIG.yaml [key=value …]      (or torchrun, bash, sbatch)
       deepspeed launch/finetune.sh multitask CONFIG.yaml [key=value …]
       python -m finetune COMMAND --help

Fine-tune a checkpoint on labelled texts, and score it; multitask: on several tasks over one trunk.
The same command again resumes an interrupted run. --print-config shows every key and stops; --check
stops after checking the config, the data and the model.

""" + "".join(f"  {name:16} {what}\n" for name, (_, what) in _COMMANDS.items())


@command
def main(argv: list[str] | None = None) -> int:
    """Check the config, then train. Exit status: 0 done, 2 bad config, 1 failed, 75 stopped."""
    arguments = sys.argv[1:] if argv is None else argv
    adopt_mpi()
    if arguments and arguments[0] in _COMMANDS:
        module = importlib.import_module(f"finetune.{_COMMANDS[arguments[0]][0]}")
        return int(module.main(arguments[1:]))
    # DeepSpeed's launcher adds --local_rank=N; the environment says the same.
    arguments = [a for a in arguments if not a.startswith("--local_rank")]
    if not {"-h", "--help", "--print-config", "--check"} & set(arguments):
        StopRequest(raises=True)  # the imports and checks below take a while
        outcome.tell()
    from finetune.config import FinetuneConfig, check
    from finetune.multitask.config import MultitaskConfig, check_all
    from runtime.config import load, print_help, to_yaml

    is_several = arguments[:1] == ["multitask"]
    schema: type[FinetuneConfig | MultitaskConfig] = FinetuneConfig
    if is_several:
        arguments, schema = arguments[1:], MultitaskConfig
    if {"-h", "--help"} & set(arguments):
        print_help(USAGE, schema)
        return EXIT_OK
    flags = {a for a in arguments if a in ("--print-config", "--check")}
    path = _only_file([a for a in arguments if "=" not in a and a not in flags])
    overrides = [a for a in arguments if "=" in a]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    judge: Any = check_all if is_several else check
    config = load(schema, path, overrides, lambda c: judge(c, world_size))
    if flags:
        print(to_yaml(config) if "--print-config" in flags else f"{path}: good")
        return EXIT_OK
    return _train(config)


def _only_file(files: list[str]) -> Path:
    from runtime.config import ConfigError

    unknown = [f for f in files if f.startswith("-")]
    if unknown:
        raise ConfigError([f"command line: unknown option {unknown[0]}; see --help"])
    if len(files) != 1:
        got = f"{len(files)}: {' '.join(files)}" if files else "none"
        raise ConfigError([f"command line: expected one config file, got {got}; see --help"])
    return Path(files[0])


def _train(config: "FinetuneConfig | MultitaskConfig") -> int:
    os.umask(0o077)  # runs are private to their user
    from finetune.config import FinetuneConfig
    from finetune.train import ONE, SEVERAL, train
    from runtime import dist, provenance
    from runtime.watchdog import Watchdog

    health, is_one = config.health, isinstance(config, FinetuneConfig)
    parts = [config] if isinstance(config, FinetuneConfig) else list(config.members.values())
    files = [
        Path(name)
        for part in parts
        for name in (part.data.train, part.data.dev, part.data.test)
        if name
    ]
    stop = StopRequest()  # from here on there may be something to save
    ranks = dist.init(
        config.run.device,
        health.collective_timeout_s,
        start_timeout_s=health.start_timeout_s,
        same=provenance.started_with(config, files),
        should_stop=stop.check,
    )
    try:
        with Watchdog(
            config.run_dir,
            ranks,
            start_timeout_s=health.start_timeout_s,
            hang_timeout_s=health.hang_timeout_s,
        ) as watchdog:
            return train(config, ranks, watchdog, ONE if is_one else SEVERAL)
    finally:
        dist.shutdown()


if __name__ == "__main__":
    leave(main())
