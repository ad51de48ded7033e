"""Files of optimizer slices: safetensors, whose names say where in which parameter they belong."""

import json
from collections.abc import Mapping

import torch

from runtime.checkpoint.hashed import HashedFile

_METADATA = {"format": "ingot-optimizer-slices"}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}  # wide first: in this order all of a file's tensors are aligned


def slice_name(parameter: str, key: str, start: int) -> str:
    """The tensor's name in the file: readers find slices by it alone."""
    return f"{parameter}|{key}|{start}"


def write_slices(file: HashedFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write contiguous host tensors of one dimension without a copy of them in memory.

    Layout: 8 bytes of header length, a JSON header padded to a multiple of 8, then the data
    (https://github.com/huggingface/safetensors#format).
    """
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": _METADATA}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        if tensors[name].numel():
            file.write(tensors[name].view(torch.uint8).numpy().data)
