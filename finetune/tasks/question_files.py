"""Files of questions on texts: SQuAD's nested JSON, or one question a line. Torch-free.

SQuAD's layout is that of CMRC 2018, DRCD, XQuAD and MLQA too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from finetune.readers import opened, read_records, unreadable
from finetune.tasks.base import Problem
from finetune.tasks.config import TaskKeys

NOWHERE = -1


class Answer(NamedTuple):
    """A right answer, and where the file says that it begins."""

    text: str
    start: int  # NOWHERE: it does not say


@dataclass(frozen=True)
class Question:
    """A question on a text, with its right answers; none at all in one to predict on."""

    line: int
    id: str
    question: str
    context: str
    answers: tuple[str, ...] | None = None  # empty: the text does not answer it
    start: int = NOWHERE  # character where the answer to learn begins
    answer: str = ""  # the answer to learn: the first one that is in the text
    is_moved: bool = False  # it is not where the file says
    missing: int = 0  # answers that are not in the text
    stratum: str = ""

    @property
    def text(self) -> str:
        """Question and text together."""
        return f"{self.question}\n{self.context}"


def read_questions(path: Path, keys: TaskKeys, *, labelled: bool) -> Iterator[Question | Problem]:
    """Yield the questions of a file, and what is wrong with them.

    A nested file is held in memory while it is read. Raises UserError where the file as a whole
    can't be read.
    """
    suffixes = path.suffixes[-2:]
    if ".json" not in suffixes:
        yield from _flat(path, keys, labelled=labelled)
        return
    with opened(path) as stream:
        content = stream.read()
    try:
        nested = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise unreadable(path, f"not valid JSON: {error}") from None
    if not isinstance(nested, dict) or not isinstance(nested.get("data"), list):
        raise unreadable(path, "no SQuAD layout: expected an object with a list 'data'")
    yield from _nested(nested["data"], _Lines(content), keys, labelled=labelled)


class _Lines:
    """Finds the lines in which ids stand, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at, self._line = 0, 1

    def of(self, name: str) -> int:
        """Return the line of an id; where it is written another way, that of the one before."""
        found = self._content.find(orjson.dumps(name), self._at)
        if found >= 0:
            self._line += self._content.count(b"\n", self._at, found)
            self._at = found
        return self._line


def _nested(
    articles: list[Any], lines: _Lines, keys: TaskKeys, *, labelled: bool
) -> Iterator[Question | Problem]:
    for number, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield Problem(1, f"entry {number} of 'data' has no list 'paragraphs'")
            continue
        for paragraph in paragraphs:
            asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
                yield Problem(1, f"a paragraph of entry {number} of 'data' has no list 'qas'")
                continue
            for one in asked:
                name = str(one.get("id", ""))
                values = one.get("question"), paragraph.get("context"), one.get("answers")
                if one.get("is_impossible") is True:
                    values = (*values[:2], [])
                yield _question(lines.of(name), name, values, keys, labelled=labelled)


def _flat(path: Path, keys: TaskKeys, *, labelled: bool) -> Iterator[Question | Problem]:
    wanted = [keys.question_key, keys.context_key, *([keys.answers_key] if labelled else [])]
    for record in read_records(path, wanted, columns=keys.columns):
        if record.problem is not None:
            yield Problem(record.line, record.problem)
            continue
        question, context, answers = [*(record.values[key] for key in wanted), None][:3]
        values = question, context, answers
        yield _question(record.line, str(record.line), values, keys, labelled=labelled)


def _question(
    line: int, name: str, values: tuple[Any, Any, Any], keys: TaskKeys, *, labelled: bool
) -> Question | Problem:
    question, context, given = values
    if not isinstance(question, str):  # an empty one can be read, and is counted in the report
        return Problem(line, f"question {name!r}: its question is no text")
    if not isinstance(context, str) or not context.strip():
        return Problem(line, f"question {name!r}: its text is empty, or none")
    if not labelled:
        return Question(line, name, question, context)
    answers = _answers(given)
    if answers is None:
        return Problem(
            line,
            f"question {name!r}: its answers must be texts, each with the character where it "
            "begins, as {text, answer_start}",
        )
    if not answers and not keys.impossible:
        return Problem(
            line,
            f"question {name!r}: has no answer; give one, or set task.impossible: true where a "
            "text may not answer a question",
        )
    return _placed(Question(line, name, question, context), answers)


def _answers(given: Any) -> list[Answer] | None:
    """Answers as [{text, answer_start}], {text: […], answer_start: […]}, texts, or one text."""
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list):
            return None
        given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=False)]
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list):
        return None
    found = [_answer(one) for one in given]
    return None if None in found else [one for one in found if one is not None]


def _answer(one: Any) -> Answer | None:
    one = {"text": one} if isinstance(one, str) else one
    if not isinstance(one, dict):
        return None
    text, start = one.get("text"), one.get("answer_start", NOWHERE)
    if not isinstance(text, str) or not text.strip() or type(start) is not int:
        return None
    return Answer(text.strip(), start + len(text) - len(text.lstrip()) if start >= 0 else NOWHERE)


def _placed(question: Question, answers: list[Answer]) -> Question | Problem:
    """The question with the answer to learn: the first that stands where its file says.

    Else the first that stands anywhere, at the place nearest to the one given: offsets are often
    off where they were counted in other units (UTF-16), or in a text that was cleaned later.
    """
    context, right = question.context, tuple(answer.text for answer in answers)
    values = {**vars(question), "answers": right}
    if not answers:
        return Question(**values)
    values["missing"] = sum(answer.text not in context for answer in answers)
    for answer in answers:
        if answer.start >= 0 and context.startswith(answer.text, answer.start):
            return Question(**{**values, "start": answer.start, "answer": answer.text})
    for answer in answers:
        places = [i for i in range(len(context)) if context.startswith(answer.text, i)]
        if places:
            _, start = min((abs(place - answer.start), place) for place in places)
            is_moved = answer.start != NOWHERE
            return Question(
                **{**values, "start": start, "answer": answer.text, "is_moved": is_moved}
            )
    return Problem(
        question.line,
        f"question {question.id!r}: its text does not hold the answer {right[0][:60]!r}; correct "
        "it, or take the question out",
    )
