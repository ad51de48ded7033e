"""The config section that says what a model learns. Torch-free."""

from typing import Literal

from runtime.config import Config, key

Kind = Literal["classification", "multi_label", "regression", "choice", "instruct"]
Template = Literal["auto", "instruction", "dialogue", "chatml"]


class TaskKeys(Config):
    """What the model learns."""

    kind: Kind = key(
        "classification",
        "classification: one class for each text; multi_label: any number of classes; "
        "regression: a number; choice: the right one of several texts; instruct: answers of an "
        "assistant",
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
        "these, chatml where its tokens are there, else instruction",
    )
    packing: bool = key(
        True,
        "instruct: the texts of a micro-batch lie end to end without padding, each "
        "seeing itself alone",
    )
    max_new_tokens: int = key(
        256, "instruct: predict ends an answer after so many tokens", unit="tokens", ge=1
    )
