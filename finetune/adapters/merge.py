"""`python -m finetune merge`: an adapter and its checkpoint as one model directory."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.adapters.config import LORAS
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

if TYPE_CHECKING:
    from model.heads import Model

_MERGED = (*LORAS, "ia3", "bitfit")


def main(arguments: list[str]) -> int:
    """Merge the adapter in DIR into OUT; exit status as of every command."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune merge",
        description="Write an adapter and the model that it changes as one Hugging Face directory.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="adapter directory, or a run")
    parser.add_argument("output", type=Path, metavar="OUT", help="directory to be made")
    options = parser.parse_args(arguments)
    merge(options.directory, options.output)
    print(f"merged model {options.output}")
    return EXIT_OK


def merge(source: Path, output: Path) -> None:
    """Write the model that an adapter makes of its checkpoint. Raises UserError."""
    from finetune.adapters.directory import is_adapter
    from finetune.checkpoint import Purpose, write_model
    from finetune.config import model_directory
    from finetune.models import open_model
    from model.hf.shards import staged

    if output.exists():
        raise UserError(f"{output}: exists already; choose another", status=EXIT_BAD_INPUT)
    directory = model_directory(source)
    if not is_adapter(directory):
        raise UserError(
            f"{directory}: is a whole model, with nothing to merge", status=EXIT_BAD_INPUT
        )
    opened = open_model(directory, quantized=False)
    whole = merged(opened.net, directory)
    purpose = Purpose(opened.task, opened.labels)
    try:
        with staged(output) as staging:
            write_model(whole, whole.state_dict(), staging, opened.tokenizer, purpose)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from error


def merged(net: "Model", directory: Path) -> "Model":
    """Make one model, without an adapter, that says what this one says; this one is used up.

    Biases of a model that has none become biases of a model that has them. Raises UserError for an
    adapter that no change of the weights can stand for.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    from finetune.adapters.attach import attached
    from model.heads import build

    adapter = attached(net)
    assert adapter is not None
    if adapter.keys.kind not in _MERGED:
        raise UserError(
            f"{directory}: adapter.kind {adapter.keys.kind} adds layers or tokens, which no change "
            f"of the weights can stand for; use the adapter as it is (these merge: "
            f"{', '.join(_MERGED)})",
            status=EXIT_BAD_INPUT,
        )
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, BaseTunerLayer)]
    config = net.config
    if adapter.keys.kind == "bitfit":
        kinds = {name.split(".")[3] for name, _ in layers}
        names = {"attention": "bias", "mlp": "mlp_bias"}
        config = config.model_copy(update={names[kind]: True for kind in kinds})
    for name, layer in layers:
        inner: Any = layer.get_base_layer()
        if adapter.keys.kind == "bitfit" and inner.bias is None:
            inner.bias = torch.nn.Parameter(torch.zeros(inner.out_features))
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, inner)
    with torch.device("meta"):
        whole = build(config, net.head)
    state = net.state_dict()
    for name, parameter in whole.state_dict().items():
        state.setdefault(name, torch.zeros(parameter.shape))  # biases of maps that it didn't change
    whole.load_state_dict(state, assign=True)
    return whole.eval()
