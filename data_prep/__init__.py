"""Text → cleaned, tokenised, verified shards; and the loader that turns shards into batches.

`Shards` and `Loader` are imported on first use: only `Loader` needs torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.loader import Loader
    from data_prep.shards import Shards

__all__ = ["Loader", "Shards"]


def __getattr__(name: str) -> Any:
    if name == "Shards":
        from data_prep.shards import Shards

        return Shards
    if name == "Loader":
        from data_prep.loader import Loader

        return Loader
    raise AttributeError(f"module 'data_prep' has no attribute {name!r}")
