"""Files that an attacker would send: pickles that act when they are opened, headers that lie.

Every payload makes one directory when it is obeyed: the marker, which must never appear.
"""

import base64
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch

from runtime.checkpoint.commit import files_in, seal
from runtime.checkpoint.format import MANIFEST


class Evil:
    """What a pickle can say: call this when you are opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def raw_pickle(marker: Path) -> bytes:
    return pickle.dumps(Evil(marker), protocol=2)


def torch_zip(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2), "evil": Evil(marker)}, file)
    return file.getvalue()


def torch_legacy(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"evil": Evil(marker)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def torch_tar(marker: Path) -> bytes:
    """The oldest of torch's formats."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = raw_pickle(marker)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zip_of(**entries: bytes) -> bytes:
    """A torch archive of these entries; `data_pkl` is data.pkl."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name.replace('_pkl', '.pkl').replace('__', '/')}", content)
    return file.getvalue()


def calling(module: str, name: str, marker: Path) -> bytes:
    """A pickle that calls module.name with the marker's path."""
    text = str(marker).encode()
    head = b"\x80\x02c" + f"{module}\n{name}\n".encode()
    return head + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def torchscript(marker: Path) -> bytes:
    return zip_of(
        data_pkl=raw_pickle(marker), constants_pkl=raw_pickle(marker), code____torch__=b""
    )


DEEPSPEED = "deepspeed.runtime.fp16.loss_scaler\nLossScaler\n"


def gadgets(marker: Path) -> dict[str, bytes]:
    """Pickles for a reader that calls nothing but what is on a list: they abuse the list."""
    unicode = struct.pack("<I", len(str(marker))) + str(marker).encode()
    scaler = f"c{DEEPSPEED}".encode()
    return {
        # The stand-in's attributes, and its class, set from the file.
        "setattr": b"\x80\x02" + scaler + b")\x81N}U\x09__class__cos\nsystem\ns}U\x01xK\x01s\x86b.",
        "newobj": b"\x80\x02" + scaler + b"X" + unicode + b"\x85\x81.",
        # A function of torch's list that calls what it is given.
        "rebuild": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nmkdir\n"
        + scaler
        + b"X"
        + unicode
        + b"\x85}tR.",
        "rebuild a stand-in": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
        + scaler
        + scaler
        + b")}tR.",
        # A dict whose methods are hidden by attributes.
        "hidden items": b"\x80\x02ccollections\nOrderedDict\n)R}U\x05items"
        + b"ccollections\nOrderedDict\nsb.",
        "global of os": calling("posix", "mkdir", marker),
        "global of builtins": calling("builtins", "eval", marker),
        "old name of builtins": calling("__builtin__", "exec", marker),
        "global of subprocess": calling("subprocess", "getoutput", marker),
        "dotted global": calling("deepspeed.runtime.fp16.loss_scaler", "os.mkdir", marker),
        "dotted global of numpy": calling("numpy", "testing.runstring", marker),
        "getattr": calling("torch.serialization", "_get_layout", marker),
        "code": calling("torch._utils", "_import_dotted_name", marker),
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93X" + unicode + b"\x85R.",
        "instance": b"(X" + unicode + b"ios\nmkdir\n.",
        "a part of itself": b"\x80\x02}q\x00U\x01ah\x00s.",
        "a thousand within another": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
        "nothing": b"",
        "no end": b"\x80\x02}",
    }


def bombs() -> dict[str, bytes]:
    """Small files that would fill the memory."""
    doubling = b"\x80\x02]q\x00"
    for level in range(60):  # a list of two of the list before
        doubling += (
            b"]q" + bytes([level + 1]) + b"(h" + bytes([level]) + b"h" + bytes([level]) + b"e"
        )
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
    sizes = b"\x8a\x05" + (2**36).to_bytes(5, "little")
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sizes + b"\x85"
    tail = b"\x89ccollections\nOrderedDict\n)RtR"
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 2**27 + b".")
    return {
        "two of each": zip_of(data_pkl=doubling + b"."),
        "expanded": zip_of(
            data_pkl=b"\x80\x02}U\x01x" + tensor + b"K\x00\x85" + tail + b"s.", data__0=b"\0" * 16
        ),
        "longer than its bytes": zip_of(
            data_pkl=b"\x80\x02}U\x01x" + tensor + b"K\x01\x85" + tail + b"s.", data__0=b"\0" * 16
        ),
        "compressed": compressed.getvalue(),
    }


# --- safetensors -----------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header (an object, or text) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> Any:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def header_attacks(name: str, marker: Path) -> dict[str, bytes]:
    """Headers that lie about what follows; NAME is a tensor that the reader looks for."""
    one = {name: entry(0, 16)}
    data = b"\0" * 16
    good = safetensors(one, data)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", raw_pickle(marker))
    twice = json.dumps(one)[:-1] + ", " + json.dumps({name: entry(0, 4)})[1:]
    return {
        "overlap": safetensors({name: entry(0, 16), "b": entry(8, 24)}, b"\0" * 24),
        "hole": safetensors({name: entry(0, 16), "b": entry(32, 48)}, b"\0" * 48),
        "backwards": safetensors({name: entry(16, 0, [4])}, data),
        "negative": safetensors({name: entry(-16, 0, [4])}, data),
        "beyond the end": safetensors({name: entry(0, 2**40)}, data),
        "overflow": safetensors({name: entry(0, 16, [2**40, 2**40])}, data),
        "overflow to 16 bytes": safetensors({name: entry(0, 16, [2**62 + 1, 4])}, data),
        "negative shape": safetensors({name: entry(0, 16, [-4])}, data),
        "fraction": safetensors(json.dumps(one).replace("16", "16.5").encode(), data),
        "another type": safetensors({name: entry(0, 16, [4], "OBJ")}, data),
        "length of 2**63": safetensors(one, data, length=2**63),
        "length of 2**64 - 1": safetensors(one, data, length=2**64 - 1),
        "length beyond the end": safetensors(one, data, length=len(good)),
        "length of 200 MB": safetensors(one, data, length=200 * 2**20),
        "trailing pickle": good + raw_pickle(marker),
        "trailing zip": good + inner.getvalue(),
        "leading pickle": raw_pickle(marker) + good,
        "two entries of a name": safetensors(twice.encode(), data),
        "not UTF-8": safetensors(b'{"\xff": 1}', data),
        "a list": safetensors([1, 2], data),
        "a number": safetensors(b"12345678", data),
        "deep": safetensors(b'{"a":' * 20000 + b"1" + b"}" * 20000),
        "metadata of numbers": safetensors({**one, "__metadata__": {"a": 1}}, data),
        "metadata that calls": safetensors(
            {"__metadata__": {"format": base64.b64encode(raw_pickle(marker)).decode()}, "x": 1}
        ),
        "not a number": safetensors(json.dumps(one).replace("16", "NaN").encode(), data),
        "empty": b"",
        "seven bytes": b"\0" * 7,
        "names a path": safetensors({"../../etc/passwd": entry(0, 16)}, data),
    }


FORMATS: dict[str, Callable[[Path], bytes]] = {
    "pickle": raw_pickle,
    "torch": torch_zip,
    "legacy torch": torch_legacy,
}


def sign(checkpoint: Path) -> None:
    """Write the manifest that the files deserve: an attacker can hash, too."""
    path = checkpoint / MANIFEST
    manifest = orjson.loads(path.read_bytes())
    path.unlink()
    manifest["files"] = seal(checkpoint, files_in(checkpoint))
    path.write_bytes(orjson.dumps(manifest))
