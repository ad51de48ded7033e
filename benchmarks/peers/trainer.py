"""transformers' Trainer on GPT-2 or Llama, told when to step from its callbacks."""

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.peers.orders import Orders
from benchmarks.peers.shapes import BETAS, LR, MAX_GRAD_NORM, WEIGHT_DECAY, Work, first_weights

_STEPS = 1_000_000  # told to stop long before


class Rows(torch.utils.data.Dataset):
    """The rows of all batches, one after the other."""

    def __init__(self, work: Work) -> None:
        self._work, self._number = work, -1
        self._batch: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return _STEPS * self._work.batch_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, row = divmod(index, self._work.batch_size)
        if number != self._number:
            self._batch, self._number = self._work.batch(number, torch.device("cpu")), number
        inputs, targets = self._batch
        # The targets that all peers have: transformers would leave out each row's last.
        return {"input_ids": inputs[row], "labels": inputs[row], "shift_labels": targets[row]}


class Told(Trainer):
    """Keeps the loss of its last step, and takes rows in their order."""

    loss: Tensor

    def training_step(self, *arguments: Any, **more: Any) -> Tensor:
        self.loss = super().training_step(*arguments, **more)
        return self.loss

    def _get_train_sampler(self, *_: Any, **__: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Steps(TrainerCallback):
    """Waits for orders before each step."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self.trainer: Told | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._orders.wanted():
            raise StopIteration

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._orders.done(self.trainer.loss)


def _model(work: Work, weights: str) -> PreTrainedModel:
    config = work.config()
    shape = {
        "vocab_size": config.vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,
    }
    if work.family == "gpt2":
        sizes = {"n_embd": config.d_model, "n_layer": config.n_layers, "n_head": config.n_heads}
        drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        net = GPT2LMHeadModel(GPT2Config(**shape, **sizes, **drops, n_positions=work.seq_len))
    else:
        sizes = {
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.d_ff,
            "rms_norm_eps": config.norm_eps,
            "max_position_embeddings": config.max_seq_len,
        }
        net = LlamaForCausalLM(LlamaConfig(**shape, **sizes, tie_word_embeddings=False))
    missing = net.load_state_dict(first_weights(weights), strict=False)
    assert not set(missing.missing_keys) - {"lm_head.weight"}, missing
    net.tie_weights()
    return net


def loop(work: Work, options: dict[str, Any], orders: Orders, device: torch.device) -> None:
    """Step as `Trainer.train` does."""
    orders.imported(compiles=options["compile"])
    net = _model(work, options["weights"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=_STEPS,
            per_device_train_batch_size=work.batch_size,
            use_cpu=device.type == "cpu",
            bf16=options["precision"] == "bf16",
            torch_compile=options["compile"],
            learning_rate=LR,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=device.type == "cuda",
        )
        steps = Steps(orders)
        steps.trainer = Told(net, arguments, train_dataset=Rows(work), callbacks=[steps])
        orders.ready()
        try:
            steps.trainer.train()
        except StopIteration:
            return
