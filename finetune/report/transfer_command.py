"""`python -m finetune transfer-report`: is the pretrained model better, and than what?"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from finetune.config import FinetuneConfig, Sets, read_sets
from finetune.report import blocks, simple_ways
from finetune.report.transfer_page import page
from finetune.report.transfer_plan import Plan, check_plan, ways_of
from finetune.report.transfer_runs import run
from finetune.report.transfer_summary import Results, summarise
from runtime.config import ConfigError, load
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_PREEMPTED, UserError
from runtime.signals import StopRequest

FILE = "transfer.json"


def main(arguments: list[str]) -> int:
    """Run what is missing and write the report after each seed; exit status as of every command."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = "transfer-report starts its runs by itself: start it as one process"
        raise UserError(message, status=EXIT_BAD_INPUT)
    os.umask(0o077)  # runs are private to their user, and so is what is made of them
    plan = _plan(_parse(arguments))
    config = check_plan(plan)
    stop = StopRequest()
    results: Results = {way.name: {} for way in plan.ways}
    try:
        for number, seed in enumerate(plan.seeds, start=1):
            _run_seed(
                plan, seed, results, stop, place=f"seed {seed}, {number} of {len(plan.seeds)}"
            )
            _write(plan, config, results)
    finally:
        stop.restore()
    print(f"wrote {plan.output / 'transfer.html'}")
    return EXIT_OK


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune transfer-report",
        description="Train a config with several seeds, from the checkpoint and from fresh "
        "weights, compare both with TF-IDF + logistic regression, and write transfer.html, .md "
        "and .json. The same command again runs only what is missing.",
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="config of a fine-tuning run")
    add("overrides", nargs="*", metavar="key=value", help="changes to it, for all ways")
    add("--seeds", type=int, default=5, metavar="N", help="run.seed and the N - 1 after it (5)")
    draws = parser.add_mutually_exclusive_group()
    draws.add_argument("--examples", type=int, metavar="N", help="learn from N, drawn by the seed")
    draws.add_argument(
        "--examples-per-class", type=int, metavar="K", help="learn from K of every class"
    )
    add(
        "--scratch", nargs="+", action="extend", default=[], metavar="key=value",
        help="changes for the runs from fresh weights, such as optim.lr=1e-3",
    )  # fmt: skip
    add(
        "--also", nargs="+", action="append", default=[], metavar=("NAME", "key=value"),
        help="one more way to train: its name and changes; can be repeated",
    )  # fmt: skip
    add("--output", type=Path, metavar="DIR", help="default: run.dir with -transfer behind it")
    add("--keep-models", action="store_true", help="keep every run's best model and checkpoints")
    options = parser.parse_intermixed_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds: {options.seeds} is less than 1")
    return options


def _plan(options: argparse.Namespace) -> Plan:
    overrides = list(options.overrides)
    if options.examples is not None:
        overrides.append(f"data.examples={options.examples}")
    if options.examples_per_class is not None:
        overrides.append(f"data.examples_per_class={options.examples_per_class}")
    for text in [*overrides, *options.scratch, *(o for _, *rest in options.also for o in rest)]:
        if "=" not in text:
            raise ConfigError([f"command line: expected key=value, got {text!r}; see --help"])
    config = load(FinetuneConfig, options.config, overrides)
    output = options.output or config.run_dir.with_name(f"{config.run_dir.name}-transfer")
    seeds = tuple(range(config.run.seed, config.run.seed + options.seeds))
    ways = ways_of(options.scratch, options.also)
    return Plan(options.config, tuple(overrides), ways, seeds, output, options.keep_models)


def _run_seed(plan: Plan, seed: int, results: Results, stop: StopRequest, place: str) -> None:
    config = plan.config(plan.ways[0], seed)
    if config.task.kind in simple_ways.KINDS:
        for name, found in simple_ways.results(config, _sets(config)).items():
            results.setdefault(name, {})[seed] = found
            _say(place, name, found, config.metric)
    for way in plan.ways:
        if stop.check():
            raise UserError("stopped; run the same command again to go on", status=EXIT_PREEMPTED)
        results[way.name][seed] = run(plan, way, seed, stop)
        _say(place, way.name, results[way.name][seed], config.metric)


def _say(place: str, name: str, result: Any, metric: str) -> None:
    score, seconds = result["scores"][metric], result["seconds"]
    told = f"{result['split']} {metric} {score:.4f}  ({seconds:.1f} s)"
    print(f"{place}: {name:<12} {told}", flush=True)


def _sets(config: FinetuneConfig) -> Sets:
    sets, problems = read_sets(config)
    if problems:
        raise ConfigError([f"{problem.key}: {problem.message}" for problem in problems])
    return sets


def _write(plan: Plan, config: FinetuneConfig, results: Results) -> None:
    sets = _sets(config)
    metric = config.metric
    overrides = {way.name: way.overrides for way in plan.ways}
    first = next(iter(results[plan.ways[0].name].values()))
    test = {} if sets.test is None else {"test": len(sets.test)}
    report = {
        "schema": 1,
        "name": config.run.name,
        "task": config.task.kind,
        "metric": metric,
        "split": first["split"],
        "model": config.model,
        "seeds": sorted(results[plan.ways[0].name]),
        "examples": {"train": len(sets.train), "dev": len(sets.dev), **test},
        "classes_count": len(sets.labels),
        "settings": config.model_dump(mode="json"),
        "warnings": _warnings(config, sets, len(results[plan.ways[0].name])),
        **summarise(results, metric, overrides),
    }
    found = page(report)
    plain = orjson.dumps(report, option=orjson.OPT_INDENT_2).decode()
    blocks.write(plan.output / FILE, plain)
    blocks.write(plan.output / "transfer.md", blocks.to_markdown(found))
    blocks.write(plan.output / "transfer.html", blocks.to_html("Is transfer worth it?", found))


def _warnings(config: FinetuneConfig, sets: Sets, seeds: int) -> list[str]:
    found = []
    if sets.test is None:
        found.append("there is no test set: the scores are of dev, which chose the models too")
    if config.data.dev is not None and len(sets.dev) > len(sets.train):
        found.append(
            f"dev has {len(sets.dev):,} examples and train {len(sets.train):,}: who has so many "
            "to choose by would learn from them; without data.dev a share of train is taken"
        )
    if seeds < 3:
        found.append(f"{seeds} seeds are too few to tell chance from merit; run 5 or more")
    return found
