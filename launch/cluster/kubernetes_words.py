"""Names, images, volumes and quantities as Kubernetes takes them, checked before it sees them."""

import re
from typing import NamedTuple

from runtime.errors import EXIT_BAD_INPUT, UserError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")  # RFC 1123
_QUANTITY = re.compile(r"[1-9]\d{0,14}(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", re.ASCII)
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d{1,5})?/)?"  # registry
    rf"{_PART}(?:/{_PART})*"
    r"(?::[\w][\w.-]{0,127})?"
    r"(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_NAME_OF_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LABEL_KEY = re.compile(
    r"(?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)
RESERVED_PATHS = ("/dev", "/etc", "/opt", "/proc", "/sys", "/tmp", "/usr")  # noqa: S108 - in a pod

RESERVED_VARIABLES = ("NODE_RANK",)


class Volume(NamedTuple):
    """A PersistentVolumeClaim and where pods see it."""

    claim: str
    path: str
    is_read_only: bool


def check_name(what: str, name: str, longest: int, *, letter_first: bool = False) -> None:
    """Refuse what is no name of RFC 1123, or for Services of RFC 1035. Raises UserError."""
    parts = name.split(".") if longest > 63 else [name]
    is_good = len(name) <= longest and all(len(p) <= 63 and _LABEL.fullmatch(p) for p in parts)
    if not is_good or (letter_first and not name[0].isalpha()):
        first = "beginning with a letter" if letter_first else "beginning with one of these"
        raise _refused(
            f"{what}: {name[:80]!r} is no name for Kubernetes; expected a-z, 0-9 and - , {first}, "
            f"at most {longest}"
        )


def check_image(image: str) -> None:
    """Refuse what no registry would know. Raises UserError."""
    if len(image) > 512 or not _IMAGE.fullmatch(image):
        raise _refused(f"--image: expected REGISTRY/NAME:TAG, got {image[:80]!r}")


def check_quantity(what: str, text: str) -> None:
    """Refuse what is no amount such as 32Gi. Raises UserError."""
    if not _QUANTITY.fullmatch(text):
        raise _refused(f"{what}: expected an amount such as 8, 500m or 32Gi, got {text[:80]!r}")


def check_volume(text: str) -> Volume:
    """CLAIM:/PATH[:ro]. Raises UserError."""
    claim, _, rest = text.partition(":")
    path, colon, mode = rest.partition(":")
    check_name("--volume", claim, 253)
    parts = path.split("/")
    is_plain = path.isprintable() and path.startswith("/") and len(path) <= 255
    if not is_plain or "" in parts[1:] or {".", ".."} & set(parts) or (colon and mode != "ro"):
        raise _refused(f"--volume: expected CLAIM:/PATH or CLAIM:/PATH:ro, got {text[:80]!r}")
    if f"/{parts[1]}" in RESERVED_PATHS:
        raise _refused(f"--volume: {path} is the image's own; mount it elsewhere, as at /data")
    return Volume(claim, path, bool(colon))


def check_variable(text: str) -> tuple[str, str]:
    """NAME=VALUE. Raises UserError."""
    name, equals, value = text.partition("=")
    if not equals or not _NAME_OF_VARIABLE.fullmatch(name):
        raise _refused(f"--env: expected NAME=VALUE, got {text[:80]!r}")
    if name in RESERVED_VARIABLES:
        raise _refused(f"--env: {name} is the pod's own number; leave it out")
    return name, value


def check_label(text: str) -> tuple[str, str]:
    """LABEL=VALUE of a node. Raises UserError."""
    label, equals, value = text.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(label) or not _LABEL_VALUE.fullmatch(value):
        raise _refused(f"--node-selector: expected LABEL=VALUE, got {text[:80]!r}")
    return label, value


def _refused(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
