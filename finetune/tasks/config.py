"""The config section that says what a model learns. Torch-free."""

from typing import Literal, Self

import pydantic

from runtime.config import Config, key

Kind = Literal[
    "classification",
    "multi_label",
    "regression",
    "choice",
    "token",
    "span",
    "instruct",
    "language",
]
Template = Literal["auto", "instruction", "dialogue", "chatml"]
Scheme = Literal["auto", "bio", "iob1", "bioes", "tags"]

_SPECIAL = 4  # tokens around a question and its text, at most
_SHORTEST_WINDOW = 16


class TaskKeys(Config):
    """What the model learns."""

    kind: Kind = key(
        "classification",
        "classification: one class for each text; multi_label: any number of classes; "
        "regression: a number; choice: the right one of several texts; "
        "token: a tag for each word, or the named entities of a text; "
        "span: the answer to a question, as a span of a text; instruct: answers of an assistant; "
        "language: texts of a domain, without labels, as in pretraining",
    )
    text_key: str = key("text", "Field or column that holds the text", min_length=1)
    pair_key: str | None = key(
        None,
        "Field or column of a second text; the model reads both together; choice: of the question",
        min_length=1,
    )
    label_key: str = key("label", "Field or column that holds the label", min_length=1)
    choices_key: str = key(
        "choices", "choice: field that holds the list of texts to choose from", min_length=1
    )
    separator: str | None = key(
        None, "multi_label: what stands between the classes in a text; none = lists", min_length=1
    )
    threshold: float = key(
        0.5, "multi_label: a class is predicted from this probability on", gt=0, lt=1
    )
    columns: tuple[str, ...] | None = key(
        None, "Names of the columns of .csv and .tsv files that have no header; none = they have"
    )
    max_length: int = key(128, "Longer texts are cut at the end, and counted", unit="tokens", ge=1)
    tokens_key: str = key("tokens", "token: field that holds a list of words", min_length=1)
    tags_key: str = key("tags", "token: field that holds their tags", min_length=1)
    entities_key: str = key(
        "entities",
        "token: field that holds the entities of the text, as {start, end, label} in characters",
        min_length=1,
    )
    token_column: int = key(1, "token: column of the word in a file of columns, from 1", ge=1)
    tag_column: int | None = key(
        None, "token: column of the tag in a file of columns, from 1; none = the last", ge=1
    )
    scheme: Scheme = key(
        "auto",
        "token: how the tags of files mark entities; bioes: also as BMES or BILOU; tags: each tag "
        "for itself, as parts of speech; auto = what a file's tags look like",
    )
    repair_tags: bool = key(
        False,
        "token: read contradictory tags leniently, an I- that nothing began as a B-, instead of "
        "refusing the file",
    )
    question_key: str = key("question", "span: field that holds the question", min_length=1)
    context_key: str = key("context", "span: field that holds the text", min_length=1)
    answers_key: str = key(
        "answers",
        "span: field that holds the right answers, as {text, answer_start}",
        min_length=1,
    )
    stride: int | None = key(
        None,
        "span: tokens that two windows of a long text share; none = a third of task.max_length",
        unit="tokens",
        ge=0,
    )
    max_answer_length: int = key(30, "span: the longest answer to give", unit="tokens", ge=1)
    impossible: bool = key(False, "span: a text may not answer a question, and the model say so")
    answer_units: Literal["auto", "words", "characters"] = key(
        "auto",
        "span: what F1 counts, words as SQuAD or characters as CMRC 2018; auto = characters where "
        "the texts are Chinese",
    )

    @property
    def window_stride(self) -> int:
        """Tokens that two windows of a text share."""
        return self.max_length // 3 if self.stride is None else self.stride

    @pydantic.model_validator(mode="after")
    def _windows(self) -> Self:
        if self.kind != "span":
            return self
        if self.max_length < _SHORTEST_WINDOW:
            raise ValueError(
                f"task.max_length: a window of {self.max_length} tokens is too short for a "
                f"question and its text; write {_SHORTEST_WINDOW} or more"
            )
        most = self.max_length - self.max_length // 4 - _SPECIAL - 1
        if self.window_stride > most:
            raise ValueError(
                f"task.stride: {self.window_stride} leaves windows of {self.max_length} tokens "
                f"nothing new; write {most} or less"
            )
        return self

    mask_fraction: float = key(
        0.15,
        "language: share of the tokens that is hidden, where the model predicts hidden ones",
        gt=0,
        lt=1,
    )
    prompt_key: str = key(
        "prompt", "instruct: field of the question, where a record is no conversation", min_length=1
    )
    response_key: str = key("response", "instruct: field of its answer", min_length=1)
    system: str | None = key(
        None, "instruct: what the system says first, where a record has none", min_length=1
    )
    template: Template = key(
        "auto",
        "instruct: what stands around each turn. auto = the checkpoint's own where it is one of "
        "these, chatml where its tokens are there and end texts, else instruction",
    )
    packing: bool = key(
        True,
        "instruct: the texts of a micro-batch lie end to end without padding, each "
        "seeing itself alone",
    )
    max_new_tokens: int = key(
        256, "instruct: predict ends an answer after so many tokens", unit="tokens", ge=1
    )
