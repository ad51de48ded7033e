"""`python -m finetune seeds` and `kfold`: many runs of one config, and how their scores lie."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from finetune.config import FinetuneConfig, check, read_sets
from finetune.report.statistics import spread
from finetune.runs import carry_out, last_words, override, refuse_launcher
from finetune.tasks import task_of
from runtime.config import load
from runtime.errors import EXIT_FAILED, EXIT_OK, UserError
from runtime.signals import StopRequest


class _Repeat(NamedTuple):
    name: str
    home: Path
    words: list[str]


def repeat(command: str, arguments: list[str]) -> int:
    """`seeds` or `kfold`: carry out what is not done yet, and sum up; returns the exit status.

    Raises UserError where a run fails.
    """
    options = _parse(command, arguments)
    refuse_launcher(command)
    os.umask(0o077)
    base = ["data.test=null"] if command == "kfold" else []
    config = load(
        FinetuneConfig, options.config, [*options.overrides, *base],
        lambda c: check(c, options.ranks),
    )  # fmt: skip
    out = options.out or config.run_dir.with_name(f"{config.run_dir.name}-{command}")
    repeats = list(_repeats(command, options.count, config, out))
    stop = StopRequest()
    reports = []
    for repeat in repeats:
        reports.append(_report_of(repeat, options, base, stop))
        print(f"{repeat.name}: {_told(reports[-1], config)}", flush=True)
    summary = _summary(command, repeats, reports, config)
    if command == "kfold":
        _gather_predictions(out, config, repeats)
    _write(out / f"{command}.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    table = _table(summary)
    _write(out / f"{command}.md", table.encode())
    print(f"\n{table}\nscores {out / f'{command}.json'}")
    return EXIT_OK


def _parse(command: str, arguments: list[str]) -> argparse.Namespace:
    is_seeds = command == "seeds"
    flag = "--seeds" if is_seeds else "--folds"
    what = (
        "Run a config with several seeds and tell how far the scores lie apart"
        if is_seeds
        else "Cross-validate: each of the parts of data.train is the test set of one run, so every "
        "example is predicted by a model that has not seen it"
    )
    parser = argparse.ArgumentParser(
        prog=f"python -m finetune {command}",
        description=f"{what}. The same command again goes on with what is not done.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="config of the runs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    parser.add_argument(
        flag,
        dest="count",
        type=int,
        default=5,
        help="how many, the first being run.seed (5)" if is_seeds else "how many parts (5)",
    )
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: run.dir with -{command}")
    options = parser.parse_intermixed_args(arguments)
    if options.count < 2:
        parser.error(f"{flag}: expected at least 2, got {options.count}")
    if options.ranks < 1:
        parser.error(f"--ranks: expected at least 1, got {options.ranks}")
    return options


def _repeats(command: str, count: int, config: FinetuneConfig, out: Path) -> Iterator[_Repeat]:
    for number in range(count):
        if command == "seeds":
            seed = config.run.seed + number
            name, words = f"seed {seed}", [override("run.seed", seed)]
            home = out / f"seed_{seed}"
        else:
            name, home = f"fold {number + 1} of {count}", out / f"fold_{number}"
            words = [override("data.folds", count), override("data.fold", number)]
        yield _Repeat(name, home, [*words, override("run.dir", str(home))])


def _report_of(
    repeat: _Repeat, options: argparse.Namespace, base: Sequence[str], stop: StopRequest
) -> dict[str, Any]:
    """Carry out a run; one that is done says so itself, unless its settings are others now."""
    log = repeat.home.with_name(f"{repeat.home.name}.log")
    words = [str(options.config), *options.overrides, *base, *repeat.words]
    status = carry_out(words, options.ranks, log, stop)
    if status != EXIT_OK:
        raise UserError(
            f"{repeat.name} ended with status {status}: {last_words(log)}; all it said is in "
            f"{log}. Mend that and run the same command again",
            status=EXIT_FAILED,
        )
    found: dict[str, Any] = orjson.loads((repeat.home / "report.json").read_bytes())
    return found


def _scores(report: dict[str, Any], config: FinetuneConfig) -> dict[str, float]:
    names = [*task_of(config.task).metrics, "loss"]
    return {
        name: float(report[name])
        for name in dict.fromkeys(names)
        if isinstance(report.get(name), int | float)
    }


def _told(report: dict[str, Any], config: FinetuneConfig) -> str:
    scores = _scores(report, config)
    return f"{report['split']} " + ", ".join(f"{name} {v:.4f}" for name, v in scores.items())


def _summary(
    command: str, repeats: list[_Repeat], reports: list[dict[str, Any]], config: FinetuneConfig
) -> dict[str, Any]:
    by_run = [_scores(report, config) for report in reports]
    common = [name for name in by_run[0] if all(name in scores for scores in by_run)]
    scores = {}
    for name in common:
        values = [found[name] for found in by_run]
        over = spread(values)
        deviation = over.std or 0.0
        scores[name] = {
            "mean": over.mean,
            "standard_deviation": deviation,
            "standard_error": deviation / len(values) ** 0.5,
            "values": values,
        }
    return {
        "command": command,
        "task": config.task.kind,
        "split": reports[0]["split"],
        "runs": [{"name": r.name, "directory": str(r.home)} for r in repeats],
        "examples": [report["examples"] for report in reports],
        "best_steps": [report["best"]["step"] for report in reports],
        "scores": scores,
    }


def _table(summary: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = ["| score | mean | standard deviation | lowest | highest |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {s['mean']:.4f} | {s['standard_deviation']:.4f} | {min(s['values']):.4f} | "
        f"{max(s['values']):.4f} |"
        for name, s in summary["scores"].items()
    ]
    return f"{len(summary['runs'])} runs, {summary['split']}:\n\n" + "\n".join(lines) + "\n"


def _gather_predictions(out: Path, config: FinetuneConfig, repeats: list[_Repeat]) -> None:
    """Every training example with what the run that has not seen it says, in the file's order."""
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, repeat in enumerate(repeats):
        fold = {"folds": len(repeats), "fold": number}
        part = config.model_copy(update={"data": config.data.model_copy(update=fold)})
        lines = (repeat.home / "predictions.jsonl").read_bytes().splitlines()
        for example, line in zip(read_sets(part)[0].test or (), lines, strict=True):
            rows.append((example.line, {**orjson.loads(line), "fold": number}))
    rows.sort(key=lambda row: row[0])
    told = [orjson.dumps({**row, "index": i, "line": at}) for i, (at, row) in enumerate(rows)]
    _write(out / "predictions.jsonl", b"".join(line + b"\n" for line in told))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
