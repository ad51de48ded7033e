"""The config section of adapters, its defaults and its checks. Torch-free."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from finetune.robust.config import Robust
from finetune.tasks.config import TaskKeys
from finetune.transfer.config import Transfer
from model.config import ModelConfig
from runtime.config import Config, Problem, key

Kind = Literal["none", "lora", "rslora", "dora", "ia3", "bitfit", "houlsby", "prompt", "prefix"]
Target = Literal["qkv", "output", "up", "down"]
Bits = Literal["8bit", "4bit"]
LORAS = ("lora", "rslora", "dora")
PROMPTS = ("prompt", "prefix")
# Peak learning rates where the user sets none: the fewer and the smaller the new parameters, the
# higher. A method's rate moves its score more than the choice of the method does.
RATES = {
    **{"lora": 1e-3, "rslora": 1e-3, "dora": 1e-3, "ia3": 5e-3, "bitfit": 3e-3},
    **{"houlsby": 1e-3, "prompt": 3e-2, "prefix": 1e-2},
}
_TARGETS: dict[str, tuple[Target, ...]] = {
    **dict.fromkeys(LORAS, ("qkv", "output")),
    "ia3": ("qkv", "down"),
    "bitfit": ("qkv", "output", "up", "down"),
    "houlsby": ("output", "down"),
}


class Adapter(Config):
    """Parameter-efficient fine-tuning."""

    kind: Kind = key(
        "none",
        "none: the model's own weights are trained. lora, rslora (for high ranks), dora: a change "
        "of low rank of the targets. ia3: a factor for each output. bitfit: the bias of each "
        "target, a new one where the model has none. houlsby: two small layers after each target. "
        "prompt: virtual tokens before the text; prefix: the same in every layer",
    )
    rank: int = key(8, "lora, rslora, dora, houlsby: width in between", ge=1, le=4096)
    alpha: float = key(16.0, "lora, rslora, dora: scale × rank (rslora: × its root)", gt=0)
    dropout: float = key(0.0, "lora, rslora, dora: of what goes in", ge=0, lt=1)
    targets: list[Target] | None = key(
        None,
        "Linear maps of every layer that are changed: qkv and output of the attention, up (with "
        "the gate) and down of the MLP; none = those that suit the kind",
    )
    quantize: Literal["none", "8bit", "4bit"] = key(
        "none",
        "Keep the linear maps of the checkpoint in 8 (LLM.int8) or 4 bits (NF4): a quarter or an "
        "eighth of the memory of fp32; needs bitsandbytes",
    )
    virtual_tokens: int = key(16, "prompt, prefix: how many", unit="tokens", ge=1, le=1024)
    whole_head: bool = key(
        False,
        "Train all of a task's head that the checkpoint has; else its last map, and what is new",
    )

    def target_names(self, family: str) -> tuple[Target, ...]:
        """The linear maps of a layer that are changed."""
        if self.targets is not None:
            return tuple(dict.fromkeys(self.targets))
        if self.kind == "bitfit" and family == "qwen3":
            return ("qkv", "output")  # its MLP can hold no bias, so nothing could be merged
        return _TARGETS.get(self.kind, ())


def with_rate(values: Any) -> Any:
    """The content of a config, with the learning rate of its adapter where it names none."""
    if not isinstance(values, Mapping) or not isinstance(values.get("adapter"), Mapping):
        return values
    kind, optim = values["adapter"].get("kind"), values.get("optim") or {}
    if not isinstance(optim, Mapping) or "lr" in optim or str(kind) not in RATES:
        return values
    return {**values, "optim": {**optim, "lr": RATES[str(kind)]}}


_BLOCK = 64  # numbers that share a scale in NF4

# Keys that only these kinds read.
_READ_BY = {
    "rank": (*LORAS, "houlsby"),
    "alpha": LORAS,
    "dropout": LORAS,
    "virtual_tokens": PROMPTS,
}


def check_adapter(
    adapter: Adapter, shape: ModelConfig, head: str, max_length: int
) -> Iterator[Problem]:
    """What doesn't go together with the model; head and max_length: of the task."""
    kind, family = adapter.kind, shape.family
    yield from _check_unread(adapter)
    if kind == "none":
        if adapter.quantize != "none":
            yield Problem(
                "adapter.quantize",
                "the model's own weights are trained, which takes whole ones; choose an "
                "adapter.kind, such as lora",
            )
        return
    yield from _check_quantized(adapter, shape)
    if importlib.util.find_spec("peft") is None:
        yield Problem("adapter.kind", f"{kind} needs peft; pip install 'ingot[finetune]'")
    if family == "custom":
        yield Problem(
            "adapter.kind",
            "this model is of no Hugging Face family, so no PEFT directory could name its layers; "
            "write none",
        )
    if adapter.targets is not None and (kind in PROMPTS or not adapter.targets):
        yield Problem(
            "adapter.targets",
            f"{kind} changes no linear map; remove the key"
            if kind in PROMPTS
            else "names no linear map; write some of qkv, output, up, down",
        )
    if kind == "bitfit" and family == "qwen3" and {"up", "down"} & set(adapter.targets or ()):
        yield Problem("adapter.targets", "the MLP of qwen3 can't hold a bias; write qkv, output")
    if kind == "houlsby" and not {"output", "down"}.issuperset(adapter.targets or ()):
        yield Problem("adapter.targets", "houlsby follows output or down alone; write these")
    room = shape.max_seq_len - max_length
    if kind in PROMPTS and shape.positions == "learned" and adapter.virtual_tokens > room:
        yield Problem(
            "adapter.virtual_tokens",
            f"{adapter.virtual_tokens} and task.max_length {max_length} are more than the model's "
            f"{shape.max_seq_len} positions; write a smaller one of the two",
        )
    if kind == "prefix" and not shape.causal:
        yield Problem(
            "adapter.kind",
            f"prefix needs a model that reads from left to right, and {family} reads both ways; "
            "take prompt, or lora",
        )
    if kind in PROMPTS and family == "roberta":
        yield Problem(
            "adapter.kind", f"{kind} is not there for roberta, which counts its positions by token"
        )
    if kind in PROMPTS and head == "choice":
        yield Problem("adapter.kind", f"{kind} is not there for task.kind: choice; take lora")


def _check_unread(adapter: Adapter) -> Iterator[Problem]:
    """Keys of other kinds. Without an adapter all wait: a config is compared with and without."""
    neutral, kind = Adapter(), adapter.kind
    for name, kinds in _READ_BY.items():
        is_set = getattr(adapter, name) != getattr(neutral, name)
        if is_set and kind not in ("none", *kinds):
            yield Problem(
                f"adapter.{name}",
                f"is of adapter.kind {', '.join(kinds)}, got {kind}; choose one of these, or "
                "remove the key",
            )


def _check_quantized(adapter: Adapter, shape: ModelConfig) -> Iterator[Problem]:
    if adapter.quantize == "none":
        return
    widths = {shape.d_model, shape.d_ff, shape.n_heads * shape.head_dim}
    if adapter.quantize == "4bit" and any(width % _BLOCK for width in widths):
        yield Problem(
            "adapter.quantize",
            f"4bit takes widths that {_BLOCK} divides, and this model's are "
            f"{', '.join(map(str, sorted(widths)))}; write 8bit",
        )
    if adapter.kind == "bitfit":
        yield Problem(
            "adapter.quantize", "bitfit has no layer for a quantized map; take lora, or write none"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Problem(
            "adapter.quantize",
            f"{adapter.quantize} needs bitsandbytes; pip install 'ingot[quantized]'",
        )


def check_with_task(adapter: Adapter, task: TaskKeys, robust: Robust) -> Iterator[Problem]:
    """What of the task and of the section `robust` virtual tokens leave no room for."""
    if adapter.kind in PROMPTS and task.kind == "instruct" and task.packing:
        yield Problem(
            "task.packing",
            f"adapter.kind {adapter.kind} puts its tokens before each row, and packed texts lie in "
            "one; write false",
        )
    if adapter.kind == "prompt" and task.kind == "language":
        yield Problem(
            "adapter.kind",
            "prompt puts its tokens before each row, and the rows of task.kind: language lie in "
            "one; take lora",
        )
    if adapter.kind == "prompt" and robust.adversarial != "none":
        yield Problem(
            "robust.adversarial",
            f"{robust.adversarial} moves the embeddings of the texts, and adapter.kind prompt "
            "puts its own among them; write none",
        )


def check_with_transfer(adapter: Adapter, transfer: Transfer) -> Iterator[Problem]:
    """What of the section `transfer` an adapter leaves no room for."""
    if adapter.kind == "none":
        return
    for name, value, neutral in (
        ("strategy", transfer.strategy, "full"),
        ("reinit_layers", transfer.reinit_layers, 0),
    ):
        if value != neutral:
            yield Problem(
                f"transfer.{name}",
                f"{value}: adapter.kind {adapter.kind} keeps the checkpoint's weights as they are; "
                f"write {neutral}, or adapter.kind: none",
            )
