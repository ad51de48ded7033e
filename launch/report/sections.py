"""The parts of a run's section that are words and tables."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from launch.report.charts import confusion
from launch.report.runs import MOST_EVENTS, Run, changed
from runtime.progress import duration

_MOST_SHOWN_SAMPLES = 8  # steps for each prompt
_UNFOLDED_PROMPTS = 2
_LARGE_MATRIX = 25  # classes
_MOST_TEXT = 4000  # characters of one sample
_MOST_NAME = 48  # of one name in a table


class Rates:
    """What an hour of one GPU costs; None where nobody said."""

    def __init__(self, price: float | None = None, watts: float | None = None) -> None:
        self.price, self.watts = price, watts


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int] = (), caption: str
) -> str:
    """A table whose first column heads its rows; cells are HTML. text: columns set to the left."""
    names = "".join(
        f'<th scope="col"{_class(place, text)}>{html.escape(name)}</th>'
        for place, name in enumerate(head)
    )
    body = "".join(_row(cells, text) for cells in rows)
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str], text: Sequence[int]) -> str:
    rest = "".join(
        f"<td{_class(place, text)}>{cell}</td>" for place, cell in enumerate(cells) if place
    )
    return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>'


def _class(place: int, text: Sequence[int]) -> str:
    return ' class="text"' if place in text else ""


def number(value: float | None, digits: int = 4) -> str:
    """A number in few digits, or n/a."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def shortened(name: str) -> str:
    """A name, such as the path of a file, by its end; the whole of it is to be had by pointing."""
    if len(name) <= _MOST_NAME:
        return html.escape(name)
    return (
        f'<span title="{html.escape(name, quote=True)}">…{html.escape(name[-_MOST_NAME:])}</span>'
    )


def folded(title: str, content: str, name: str, *, is_open: bool = False) -> str:
    """Something to unfold. name: unique on the page."""
    opened = " open" if is_open else ""
    return (
        f'<details id="{html.escape(name, quote=True)}"{opened}>'
        f"<summary>{html.escape(title)}</summary>{content}</details>"
    )


def facts(found: list[tuple[str, str]]) -> str:
    """Names and values as a list of cards."""
    items = "".join(
        f"<div><dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd></div>" for n, v in found
    )
    return f"<dl>{items}</dl>"


def summary(run: Run, rates: Rates) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    curves = run.curve
    loss, valid, rate = curves("loss"), curves("valid_loss"), curves("tokens_per_second")
    accuracy, pairs = curves("valid_accuracy"), curves("valid_pair_accuracy")
    memory, wait = curves("memory_bytes"), curves("data_wait")
    # Of a loss over hidden tokens, or of labels, or with pairs in it, it would say nothing.
    has_perplexity = accuracy is None and run.classification is None and run.stage == "pretrain"
    found = [
        ("steps", f"{run.last_step:,}"),
        ("tokens seen", f"{run.tokens_seen:,}"),
        ("last training loss", number(loss.last) if loss else ""),
        ("best validation loss", f"{number(valid.low)} nats" if valid else ""),
        (
            "perplexity",
            number(math.exp(min(valid.low, 700))) if has_perplexity and valid else "",
        ),
        ("hidden tokens guessed right", f"{accuracy.last:.1%}" if accuracy else ""),
        ("sentence pairs told apart", f"{pairs.last:.1%}" if pairs else ""),
        ("median tokens / s", f"{rate.median:,.0f}" if rate else ""),
        ("model-FLOPs utilisation", _utilisation(run)),
        ("memory", f"{memory.last:.2f} GiB" if memory else ""),
        ("waiting for data", f"{wait.median:.1%}" if wait else ""),
        *cost(run, rates),
    ]
    return [(name, value) for name, value in found if value]


def _utilisation(run: Run) -> str:
    if "mfu" not in run.curves:
        return ""
    full, causal = run.curve("mfu"), run.curve("mfu_causal")
    if full is None:
        return "n/a (unknown device)"
    return f"{full.last:.1%}" + (f" ({causal.last:.1%} causal)" if causal else "")


def cost(run: Run, rates: Rates) -> list[tuple[str, str]]:
    """Hours, starts, energy and money of all starts so far."""
    if not run.cost.starts:
        return []
    hours = run.cost.rank_seconds / 3600
    unit = "GPU-hours" if run.cost.has_gpus else "rank-hours (CPU)"
    found = [
        ("wall time", duration(run.cost.seconds)),
        ("starts", f"{run.cost.starts:,}"),
        (unit, number(hours)),
    ]
    if rates.watts is not None:
        energy = f"{number(hours * rates.watts / 1000)} kWh"
        found.append((f"energy at {rates.watts:g} W each", energy))
    if rates.price is not None:
        found.append((f"price at {rates.price:g} an hour", f"{hours * rates.price:,.2f}"))
    return found


def missing(run: Run) -> str:
    """What the page could not show, and why."""
    told = [*run.missing]
    for key, curve in sorted(run.curves.items()):
        if curve.gaps and key in ("loss", "grad_norm", "valid_loss"):
            steps = ", ".join(f"{step:,}" for step in curve.gap_steps)
            more = ", …" if curve.gaps > len(curve.gap_steps) else ""
            told.append(f"{key} was not finite in {curve.gaps:,} records (steps {steps}{more})")
    if not told:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in told)
    return f'<div class="missing" role="note"><b>Incomplete</b><ul>{items}</ul></div>'


def events(run: Run) -> str:
    """What befell the run: bad steps, roll-backs, slow ranks; the last of them."""
    if not run.events:
        return ""
    total, told = sum(run.event_counts.values()), len(run.events)
    rows = [
        [
            f"{event['step']:,}",
            html.escape(str(event.get("kind", "")).replace("_", " ")),
            html.escape(str(event.get("message", ""))[:1000]),
        ]
        for event in run.events
    ]
    counts = ", ".join(f"{count:,} × {kind}" for kind, count in run.event_counts.most_common(20))
    which = f", the last {told} of {total:,}" if told < total else ""
    assert told <= MOST_EVENTS
    shown = table(["step", "what", "told"], rows, text=(1, 2), caption=counts)
    return f"<h3>Events{which}</h3>{shown}"


def mixture(run: Run) -> str:
    """How much of each source went in so far."""
    tokens = [run.curve(f"tokens_by_source/{place}") for place in range(len(run.sources))]
    if len(run.sources) < 2 or not any(tokens):
        return ""
    total = sum(curve.last for curve in tokens if curve) or 1
    rows = []
    for place, (name, curve) in enumerate(zip(run.sources, tokens, strict=True)):
        passed = run.curve(f"epochs_by_source/{place}")
        held = curve.last if curve else 0
        epochs = f"{passed.last:.3g}" if passed else "n/a"
        rows.append([html.escape(name), f"{held:,.0f}", f"{held / total:.2%}", epochs])
    caption = "as the loader handed it out, up to the last record that says so"
    shown = table(["source", "tokens", "share", "epochs"], rows, caption=caption)
    return f"<h3>Data that went in</h3>{shown}"


def samples(run: Run) -> str:
    """What the model made of each prompt, at steps spread over the run, the newest first."""
    if not run.samples:
        return ""
    parts = []
    for place, (prompt, held) in enumerate(run.samples.items()):
        count = min(len(held), _MOST_SHOWN_SAMPLES)
        chosen = sorted({round(i * (len(held) - 1) / max(1, count - 1)) for i in range(count)})
        rows = [[f"{held[i]['step']:,}", _sample(held[i], prompt)] for i in reversed(chosen)]
        shown = table(["step", "text"], rows, text=(1,), caption=f"prompt: {prompt or '(empty)'}")
        if place >= _UNFOLDED_PROMPTS:
            shown = folded(f"prompt: {prompt}", shown, f"{run.path}/sample{place}")
        parts.append(shown)
    return f"<h3>Samples over time</h3>{''.join(parts)}"


def _sample(sample: dict[str, Any], prompt: str) -> str:
    text = str(sample.get("text", ""))[:_MOST_TEXT]
    if text.startswith(prompt):
        new = html.escape(text[len(prompt) :])
        return f'<span class="sample">{html.escape(prompt)}<mark>{new}</mark></span>'
    guesses = sample.get("guesses")
    told = []
    for guess in guesses if isinstance(guesses, list) else []:
        if isinstance(guess, dict):
            was = f" for “{guess['hidden']}”" if guess.get("hidden") is not None else ""
            share = guess.get("probability")
            sure = f" {share:.0%}" if isinstance(share, int | float) else ""
            told.append(f"“{guess.get('guess')}”{was}{sure}")
    shown = f' <span class="unit">({html.escape(", ".join(told))})</span>' if told else ""
    return f'<span class="sample">{html.escape(text)}</span>{shown}'


def configuration(run: Run) -> str:
    """What differs from the defaults first, then everything; both folded."""
    if not run.config:
        return ""
    differs = changed(run)
    rows = [
        [
            html.escape(key),
            html.escape(setting(value)),
            html.escape(setting(run.defaults[key]) if key in run.defaults else "–"),
        ]
        for key, value in differs.items()
    ]
    caption = "as they were resolved, beside what they are when nobody writes them"
    caption = "as they were resolved, beside what they are when nobody writes them"
    first = table(["key", "value", "default"], rows, text=(1, 2), caption=caption)
    rest = [[html.escape(k), html.escape(setting(v))] for k, v in run.config.items()]
    whole = table(["key", "value"], rest, text=(1,), caption="as it was resolved")
    title = f"configuration: {len(rows)} settings that differ from the defaults"
    return folded(title, first, f"{run.path}/changed") + folded(
        f"configuration: all {len(rest)} settings", whole, f"{run.path}/config"
    )


def setting(value: Any) -> str:
    """A value as YAML would say it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def versions(run: Run) -> str:
    """What the run was made with."""
    if not run.versions:
        return ""
    rows = [[html.escape(str(k)), html.escape(str(v))] for k, v in run.versions.items()]
    devices = ", ".join(sorted(run.cost.devices))
    if devices:
        rows.append(["device", html.escape(devices)])
    shown = table(["package", "version"], rows, text=(1,), caption="of the last start")
    return folded("versions", shown, f"{run.path}/versions")


def classification(run: Run) -> str:
    """Per-class scores and the confusion matrix of a fine-tuned classifier."""
    report = run.classification
    if report is None:
        return ""
    try:
        rows = [_score_row(name, scores) for name, scores in report["classes"].items()]
        rows += [_score_row(name, report[name]) for name in ("macro avg", "weighted avg")]
        split = html.escape(str(report["split"]))
        accuracy = f"{report['accuracy']:.1%}"
        matrix = confusion([str(label) for label in report["labels"]], report["confusion_matrix"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        run.missing.append("report.json is not as this version writes it: no scores of classes")
        return ""
    head = ["class", "precision", "recall", "F1", "support"]
    shown = table(head, rows, caption="scores of each class")
    # Its many labels are too small to read in a narrow place: there it is moved sideways.
    large = ' class="large"' if len(report["labels"]) > _LARGE_MATRIX else ""
    caption = "<figcaption><b>confusion matrix</b></figcaption>"
    figure = f'<figure{large}>{caption}<div class="scroll">{matrix}</div></figure>'
    return (
        f"<h3>Classification of the {split} set: accuracy {accuracy}</h3>"
        f'<div class="scores">{shown}{figure}</div>'
    )


def _score_row(name: str, scores: dict[str, float]) -> list[str]:
    cells = [f"{scores[k]:.3f}" for k in ("precision", "recall", "f1-score")]
    return [html.escape(name), *cells, f"{scores['support']:.0f}"]
