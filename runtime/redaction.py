"""Secrets do not reach what a run stores. Torch-free.

Keys of our own are typed and hold none. What people pass through to other packages is free in
form, such as the access keys of trackers under `deepspeed.extra`.
"""

import re
from typing import Annotated, Any

import pydantic

HIDDEN = "<redacted>"
_SECRET = re.compile(
    r"(^|[_.-])(token|key|apikey|secret|password|passwd|passphrase|credentials?|auth)$",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # name:password@ in an address


def redacted(value: Any) -> Any:
    """A copy without the values whose key looks like a secret's, nor credentials in addresses."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if _SECRET.search(str(name)) and held is not None else redacted(held)
            for name, held in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return _CREDENTIALS.sub(HIDDEN, value) if isinstance(value, str) else value


# A free-form section of a config: redacted in every dump as JSON, which is what is stored, printed
# and compared at a resume; whole in Python, where it is used.
FreeForm = Annotated[dict[str, Any], pydantic.PlainSerializer(redacted, when_used="json")]
