"""Answers to questions as spans of a text that is read in overlapping windows. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.tasks import answer_scores
from finetune.tasks.answer_scores import Score
from finetune.tasks.base import Encoded, Indices, Outputs, Problem, Task, join
from finetune.tasks.question_files import NOWHERE, Question, read_questions
from finetune.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

_TEXTS_TO_TELL_UNITS = 200
_OUTSIDE = -1  # the offset of a token that is not of the text
_SHOWN = 5  # answers of a prediction
_WEIGHED = 20  # answers among which probabilities are shared


class Candidate(NamedTuple):
    """A span of the text that may be the answer."""

    score: float  # logits of its start and its end together
    start: int  # character
    end: int


@dataclass(frozen=True)
class EncodedWindows(Encoded):
    """Windows as token ids, (windows, 2) labels: the columns of the answer's ends, or 0, 0."""

    owner: Indices | None = None  # (windows,): each one's question, in order
    offsets: tuple[npt.NDArray[np.int32], ...] = ()  # of each window: characters (tokens, 2)
    cut_answers: int = 0  # answers that no window holds whole


class SpanExtraction(Task):
    """Answers as spans of a text."""

    kind = "span"
    head = "span"
    metrics = ("f1", "exact_match", "loss")
    cuts_examples = True

    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[Question | Problem]:
        """Yield the questions of a file, with their answers where `labelled`."""
        yield from read_questions(path, self.keys, labelled=labelled)

    def encode(
        self, examples: Sequence[Question], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise questions with windows of their texts.

        A window without the answer says so with its first token, as for a text without one (Devlin
        et al. 2019, §4.3).
        """
        rows, segments, offsets, owner = [], [], [], []
        targets: list[tuple[int, int]] = []
        truncated = cut_answers = 0
        pairs = ((example.question, example.context) for example in examples)
        found = tokenizer.encode_windows(pairs, self.keys.window_stride)
        for number, (example, (windows, is_cut)) in enumerate(zip(examples, found, strict=True)):
            own = [_ends(window.offsets, example) for window in windows]
            rows += [window.ids for window in windows]
            segments += [w.segments for w in windows if w.segments is not None]
            offsets += [window.offsets for window in windows]
            owner += [number] * len(windows)
            targets += own
            truncated += is_cut
            cut_answers += example.start != NOWHERE and all(ends == (0, 0) for ends in own)
        tokens, starts = join(rows)
        return EncodedWindows(
            examples,
            tokens,
            starts,
            np.array(targets, dtype=np.int64),
            truncated,
            segments=np.concatenate(segments) if segments else None,
            owner=np.array(owner, dtype=np.int64),
            offsets=tuple(offsets),
            cut_answers=cut_answers,
        )

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """Logits of start and end (tokens, 2) of each window."""
        lengths = batch["attention_mask"].sum(-1).tolist()
        rows = logits.float().cpu().numpy()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def owners(self, data: Encoded) -> Indices:
        """Each window's question, (windows,)."""
        found = _windows(data).owner
        assert found is not None
        return found

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """F1 and exact match of the answers, from 0 to 1, and the loss of the windows."""
        return {
            **_means([score for _, score in self._scored(data, outputs)]),
            "loss": _loss(data, outputs),
        }

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """All scores, and what of the answers could not be learned as their file has them."""
        scored = self._scored(data, outputs)
        questions: Sequence[Question] = data.examples
        found = {
            **self.scores(data, outputs, labels),
            "answer_units": self._units(questions),
            "windows": len(data),
            "questions_empty": sum(not question.question.strip() for question in questions),
            "answers_cut": _windows(data).cut_answers,
            "answers_moved": sum(question.is_moved for question in questions),
            "answers_not_in_text": sum(question.missing for question in questions),
        }
        if self.keys.impossible:
            for name, has_answer in (("answerable", True), ("impossible", False)):
                part = [score for q, score in scored if bool(q.answers) is has_answer]
                found[name] = {"questions": len(part), **(_means(part) if part else {})}
        return found

    def report_text(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> str:
        """Return the scores for people."""
        report = self.report(data, outputs, labels)
        return (
            f"F1 {report['f1']:.4f} by {report['answer_units']}, exact match "
            f"{report['exact_match']:.4f}, loss {report['loss']:.4f}\n"
            f"{len(data.examples):,} questions in {len(data):,} windows; {report['answers_cut']:,} "
            f"answers in no window whole, {report['answers_moved']:,} elsewhere than their file "
            f"says, {report['answers_not_in_text']:,} right answers not in their text\n"
        )

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield the answer to each question with its characters, and the next likely ones."""
        for question, candidates, nothing in self._answered(data, outputs, _WEIGHED):
            shown = _with_probabilities(question, candidates, nothing)
            known: dict[str, Any] = {}
            if question.answers is not None:
                known = {"label": question.answer, "answers": list(dict.fromkeys(question.answers))}
            yield {
                "id": question.id,
                "question": question.question,
                **known,
                "predicted": shown[0]["text"] if shown else "",
                "probability": shown[0]["probability"] if shown else 0.0,
                "candidates": shown[:_SHOWN],
            }

    def _answered(
        self, data: Encoded, outputs: Outputs, count: int
    ) -> Iterator[tuple[Question, list[Candidate], float | None]]:
        """Each question with its most likely spans, and the score of there being none."""
        windows = _windows(data)
        assert windows.owner is not None
        ends = np.searchsorted(windows.owner, np.arange(len(data.examples) + 1))
        for question, start, end in zip(data.examples, ends[:-1], ends[1:], strict=True):
            found: dict[tuple[int, int], Candidate] = {}
            for i in range(int(start), int(end)):
                longest = self.keys.max_answer_length
                for one in best_spans(outputs[i], windows.offsets[i], longest, count):
                    known = found.get(one[1:])
                    found[one[1:]] = one if known is None else max(known, one)
            # The text has no answer where no window has one: the least sure of them decides.
            nothing = min(float(outputs[i][0].sum()) for i in range(int(start), int(end)))
            ranked = sorted(found.values(), reverse=True)[:count]
            yield question, ranked, nothing if self.keys.impossible else None

    def _scored(self, data: Encoded, outputs: Outputs) -> list[tuple[Question, Score]]:
        units = self._units(data.examples)
        scored = []
        for question, candidates, nothing in self._answered(data, outputs, 1):
            is_none = not candidates or (nothing is not None and nothing > candidates[0].score)
            answer = "" if is_none else _written(question, candidates[0])
            scored.append((question, answer_scores.score(answer, question.answers or (), units)))
        return scored

    def _units(self, questions: Sequence[Question]) -> str:
        if self.keys.answer_units != "auto":
            return self.keys.answer_units
        return answer_scores.units_of([q.context for q in questions[:_TEXTS_TO_TELL_UNITS]])


def best_spans(
    logits: npt.NDArray[np.float32],
    offsets: npt.NDArray[np.int32],
    longest: int,
    count: int,
) -> list[Candidate]:
    """The spans of a window with the highest scores, every one being looked at.

    logits: (tokens, 2) of start and end; offsets: (tokens, 2), _OUTSIDE what is not of the text;
    longest: tokens of a span.
    """
    inside = np.flatnonzero(offsets[:, 0] != _OUTSIDE)
    if not len(inside):
        return []
    first, size = int(inside[0]), len(inside)  # a text's tokens stand side by side
    longest = min(longest, size)
    ends = np.full(size + longest - 1, -np.inf, dtype=np.float32)
    ends[:size] = logits[inside, 1]
    reach = np.lib.stride_tricks.sliding_window_view(ends, longest)  # (size, longest)
    scores = (logits[inside, 0][:, None] + reach).ravel()
    best = np.argpartition(-scores, min(count, len(scores)) - 1)[:count]
    found = []
    for index in best.tolist():
        start, extra = divmod(index, longest)
        if np.isfinite(scores[index]):
            span = offsets[first + start, 0], offsets[first + start + extra, 1]
            found.append(Candidate(float(scores[index]), int(span[0]), int(span[1])))
    return found


def _ends(offsets: npt.NDArray[np.int32], example: Question) -> tuple[int, int]:
    """Columns of the first and the last token of the answer; 0, 0 where a window lacks it."""
    if example.start == NOWHERE:
        return 0, 0
    start, end = example.start, example.start + len(example.answer)
    inside = np.flatnonzero(offsets[:, 0] != _OUTSIDE)
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < end:
        return 0, 0
    first = inside[offsets[inside, 1] > start]
    last = inside[offsets[inside, 0] < end]
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


def _written(question: Question, span: Candidate) -> str:
    return question.context[span.start : span.end].strip()


def _with_probabilities(
    question: Question, candidates: Sequence[Candidate], nothing: float | None
) -> list[dict[str, Any]]:
    """Candidates as JSON values with their shares of probability, the most likely first."""
    shown = [
        {"text": _written(question, one), "start": one.start, "end": one.end} for one in candidates
    ]
    scores = [one.score for one in candidates]
    if nothing is not None:
        shown.append({"text": "", "start": NOWHERE, "end": NOWHERE})
        scores.append(nothing)
    weights = np.exp(np.array(scores) - max(scores, default=0.0))
    for one, weight in zip(shown, weights / max(1.0, weights.sum()), strict=True):
        one["probability"] = round(float(weight), 6)
    order = sorted(range(len(shown)), key=lambda i: -scores[i])
    return [shown[i] for i in order]


def _means(scores: Sequence[Score]) -> dict[str, float]:
    return {
        "f1": sum(score.f1 for score in scores) / len(scores),
        "exact_match": sum(score.exact_match for score in scores) / len(scores),
    }


def _loss(data: Encoded, outputs: Outputs) -> float:
    """Mean negative log-likelihood of the windows' starts and ends, in nats."""
    total = 0.0
    for logits, columns in zip(outputs, data.labels, strict=True):
        values = logits.astype(np.float64)
        shifted = values - values.max(0)
        found = shifted - np.log(np.exp(shifted).sum(0))
        total -= float(found[columns[0], 0] + found[columns[1], 1]) / 2
    return total / len(outputs)


def _windows(data: Encoded) -> EncodedWindows:
    assert isinstance(data, EncodedWindows)
    return data
