"""From the results of runs to what a transfer report says: means, differences, findings."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.report.simple_ways import MAJORITY, TFIDF
from finetune.report.statistics import Difference, difference, spread
from finetune.report.transfer_plan import PRETRAINED, SCRATCH
from finetune.report.transfer_runs import Result, first_reaching
from finetune.tasks.base import LOWER_IS_BETTER

TITLES = {
    PRETRAINED: "pretrained",
    SCRATCH: "from scratch",
    TFIDF: "TF-IDF + logistic regression",
    MAJORITY: "most frequent class",
}
Results = dict[str, dict[int, Result]]  # way → seed → what it found
MOST_CLASSES = 10  # on either side of the comparison by class


def title_of(name: str) -> str:
    """What a way is called in sentences and tables."""
    return TITLES.get(name, name)


def summarise(results: Results, metric: str, overrides: Mapping[str, Sequence[str]]) -> Any:
    """All that the report says, as JSON values.

    Differences are the pretrained model's score minus another way's, over the seeds of both.
    """
    found: dict[str, Any] = {
        "ways": [
            _way(name, list(runs.values()), metric, list(overrides.get(name, ())))
            for name, runs in results.items()
            if runs
        ],
        "differences": [
            {"minus": name, **_difference(results, name, metric)}
            for name, runs in results.items()
            if name != PRETRAINED and runs and results[PRETRAINED]
        ],
        "classes": _classes(results),
    }
    found["speed"] = _speed(results, metric)
    found["findings"] = findings(results, metric)
    return found


def _way(name: str, runs: list[Result], metric: str, overrides: list[str]) -> dict[str, Any]:
    parts: dict[str, list[dict[str, float]]] = {
        "scores": [run["scores"] for run in runs],
        "seen": [run["seen"] for run in runs if "seen" in run],
        "unseen": [found for run in runs if (found := _unseen(run))],
    }
    if not parts["seen"]:
        del parts["unseen"]  # says what scores does
    firsts = [run["curve"][0] for run in runs if run.get("curve")]
    return {
        "name": name,
        "title": title_of(name),
        "overrides": overrides,
        **{part: _spreads(rows) for part, rows in parts.items() if rows},
        **_spread_of("initial_dev", [value for _, value in firsts]),
        **({"initial_step": sorted({step for step, _ in firsts})} if firsts else {}),
        **_spread_of("best_dev", [run["best_dev"] for run in runs if "best_dev" in run]),
        **_spread_of("best_step", [run["best_step"] for run in runs if "best_step" in run]),
        **_spread_of("seconds", [run["seconds"] for run in runs if "seconds" in run]),
        "metric": metric,
        "runs": runs,
    }


def _unseen(run: Result) -> dict[str, float]:
    """The scores of the examples that are not in train: all, where a seed's draw has none."""
    return run["scores"] if run["seen_in_train"] == 0 else run.get("unseen", {})


def _spread_of(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {name: spread(values)._asdict()} if values else {}


def _spreads(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {
        name: spread([row[name] for row in rows])._asdict()
        for name in rows[0]
        if all(name in row for row in rows)
    }


def _difference(results: Results, name: str, metric: str) -> dict[str, Any]:
    compared = difference(_finals(results, PRETRAINED, metric), _finals(results, name, metric))
    if compared is None:
        return {"metric": metric, "n": 0}
    return {"metric": metric, **compared._asdict()}


def _finals(results: Results, name: str, metric: str) -> dict[int, float]:
    runs = results.get(name, {})
    return {s: run["scores"][metric] for s, run in runs.items() if metric in run["scores"]}


def _speed(results: Results, metric: str) -> dict[str, Any]:
    """After which step the pretrained model is as good on dev as its rivals ever are."""
    found: dict[str, Any] = {}
    for name, runs in results.items():
        if name == PRETRAINED:
            continue
        steps = [
            first_reaching(results[PRETRAINED][seed]["curve"], run["best_dev"], metric)
            for seed, run in runs.items()
            if seed in results[PRETRAINED] and "best_dev" in run
        ]
        reached = [step for step in steps if step is not None]
        if steps:
            found[name] = {
                "reached": len(reached),
                "n": len(steps),
                **(_spread_of("step", reached)),
            }
    return found


def _classes(results: Results) -> list[dict[str, Any]]:
    """Mean F1 of each class by the pretrained model and by TF-IDF, sorted by the difference."""
    ways = [_mean_classes(results.get(name, {})) for name in (PRETRAINED, TFIDF)]
    if not all(ways):
        return []
    rows = [
        {"class": name, PRETRAINED: ways[0][name], TFIDF: ways[1][name]}
        for name in ways[0]
        if name in ways[1]
    ]
    return sorted(rows, key=lambda row: row[PRETRAINED] - row[TFIDF])


def _mean_classes(runs: dict[int, Result]) -> dict[str, float]:
    rows = [run.get("classes", {}) for run in runs.values()]
    names = rows[0] if rows else {}
    return {n: sum(r.get(n, 0.0) for r in rows) / len(rows) for n in names}


# --- sentences -------------------------------------------------------------------------------


def findings(results: Results, metric: str) -> list[str]:
    """Say in words what the comparison shows, and where it shows nothing."""
    if not results[PRETRAINED]:
        return []
    lines = []
    for name in results:
        if name == PRETRAINED:
            continue
        ours, theirs = _finals(results, PRETRAINED, metric), _finals(results, name, metric)
        compared = difference(ours, theirs)
        if compared is not None:
            lines.append(_sentence(name, compared, metric))
    lines += _about_speed(results, metric)
    lines += _about_leaks(results, metric)
    return lines


def _sentence(name: str, compared: Difference, metric: str) -> str:
    is_lower_better = metric in LOWER_IS_BETTER
    them = title_of(name)
    pair = f"pretrained − {them}"
    if compared.interval is None:
        return (
            f"{pair}: {compared.mean:+.4f} {metric}, from one seed: no spread is known, so nothing "
            "follows; run more seeds"
        )
    low, high = compared.interval
    told = (
        f"{pair} = {_with_error(compared.mean, compared.standard_error)} {metric}, mean ± standard "
        f"error over {compared.n} seeds; 95 % interval {low:+.4f} to {high:+.4f}"
    )
    if compared.sign == 0:
        return f"no clear difference between the pretrained model and {them}: {told}"
    if (compared.sign > 0) != is_lower_better:
        return f"the pretrained model is better than {them}: {told}"
    return f"{them} is better than the pretrained model: {told}"


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:+.4f}" if error is None else f"{mean:+.4f} ± {error:.4f}"


def _about_speed(results: Results, metric: str) -> list[str]:
    found = _speed(results, metric).get(SCRATCH)
    if not found:
        return []
    scratch = [run["best_step"] for run in results[SCRATCH].values()]
    mean = sum(scratch) / len(scratch)
    if found["reached"] < found["n"]:
        return [
            "the pretrained model is as good on dev as the one from scratch ever gets in "
            f"{found['reached']} of {found['n']} seeds"
        ]
    return [
        "the pretrained model is as good on dev as the one from scratch ever gets after "
        f"{found['step']['mean']:.0f} steps; that one needs {mean:.0f}"
    ]


def _about_leaks(results: Results, metric: str) -> list[str]:
    lines = []
    runs = [run for run in results[PRETRAINED].values() if run["seen_in_train"]]
    if runs:
        most = max(run["seen_in_train"] for run in runs)
        lines.append(
            f"up to {most} of {runs[0]['examples']} {runs[0]['split']} examples are in train too, "
            "word for word; the columns seen and unseen count them apart"
        )
    for name in (SCRATCH, TFIDF) if runs else ():
        pairs = [
            {s: found[metric] for s, r in results.get(w, {}).items() if (found := _unseen(r))}
            for w in (PRETRAINED, name)
        ]
        compared = difference(*pairs)
        if compared is not None:
            shown = _with_error(compared.mean, compared.standard_error)
            lines.append(f"on unseen examples alone, pretrained − {title_of(name)}: {shown}")
    return lines
