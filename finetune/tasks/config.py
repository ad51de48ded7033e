"""The config section that says what a model learns. Torch-free."""

from typing import Literal

from runtime.config import Config, key

Kind = Literal["classification"]


class TaskKeys(Config):
    """What the model learns."""

    kind: Kind = key("classification", "classification: one class for each text")
    text_key: str = key("text", "Field or column that holds the text", min_length=1)
    pair_key: str | None = key(
        None, "Field or column of a second text; the model reads both together", min_length=1
    )
    label_key: str = key("label", "Field or column that holds the label", min_length=1)
    max_length: int = key(128, "Longer texts are cut at the end, and counted", unit="tokens", ge=1)
