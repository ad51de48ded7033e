"""Classification by a language model that was never trained for it: which answer does it expect?

The text goes into a prompt that has a place for the answer; each class has a word or two, and the
class whose words are likeliest there wins (Schick & Schütze 2021, "Exploiting Cloze Questions";
Brown et al. 2020 for causal models).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.models import Opened
from finetune.tasks.base import Encoded, Outputs, join
from finetune.tasks.classification import Classification
from finetune.tasks.config import TaskKeys
from finetune.tasks.texts import TextExample
from finetune.tokenizer import TextTokenizer
from model import load_pretrained
from model.heads import LanguageModel
from model.hf import CheckpointError
from model.kernels import linear_cross_entropy
from runtime.errors import EXIT_BAD_INPUT, UserError

_PLACES = re.compile(r"(\{text\}|\{label\})")


class Prompt(NamedTuple):
    """Where the text and the answer stand, and each class's answer."""

    before: str  # the text
    between: str  # text and answer
    after: str  # the answer
    words: list[str]  # one for each class

    @classmethod
    def parse(cls, template: str, words: str | None, labels: Sequence[str]) -> "Prompt":
        """Read the command line's --prompt and --words. Raises UserError, status 2.

        words: `class=word,…`; a class left out is its own name, with spaces for `_`.
        """
        parts = _PLACES.split(template)
        if parts[1::2] != ["{text}", "{label}"]:
            raise UserError(
                f"--prompt {template!r}: expected {{text}} once and after it {{label}} once, as in "
                "'{text} It is {label}.'",
                status=EXIT_BAD_INPUT,
            )
        given = dict(_pair(item) for item in (words or "").split(",") if item.strip())
        unknown = sorted(set(given) - set(labels))
        if unknown:
            raise UserError(
                f"--words: the data has no class {unknown[0]!r}; its classes: "
                f"{', '.join(labels[:20])}",
                status=EXIT_BAD_INPUT,
            )
        # White space belongs to what follows it, as most tokenizers have it.
        between = parts[2].rstrip()
        space = parts[2][len(between) :]
        own = [space + given.get(label, label.replace("_", " ")) for label in labels]
        return cls(parts[0], between, parts[4], own)


def _pair(item: str) -> tuple[str, str]:
    label, equals, word = (part.strip() for part in item.partition("="))
    if not equals or not label or not word:
        raise UserError(f"--words: {item.strip()!r}: expected class=word", status=EXIT_BAD_INPUT)
    return label, word


class _Form(NamedTuple):
    """A row of an item: what stands in the answer's place, and the classes that it scores."""

    filling: list[int]
    answers: list[tuple[int, list[int]]]  # class and its pieces, as many as the filling


class ZeroShot(Classification):
    """Classification by the likelihood of each class's answer, mean over its pieces.

    A masked model reads as many masks as an answer has pieces, so answers of one length share a
    row; a causal one reads each answer.
    """

    def __init__(
        self, keys: TaskKeys, prompt: Prompt, tokenizer: TextTokenizer, *, mask_id: int | None
    ) -> None:
        super().__init__(keys)
        self._prompt, self._mask_id = prompt, mask_id
        self._pieces = [tokenizer.pieces(word) for word in prompt.words]
        self._forms = self._make_forms()
        self.prior: Tensor | None = None  # (classes,) scores without a text, taken off

    def _make_forms(self) -> list[_Form]:
        numbered = list(enumerate(self._pieces))
        if self._mask_id is None:
            return [_Form(pieces, [(number, pieces)]) for number, pieces in numbered]
        lengths = sorted({len(pieces) for pieces in self._pieces})
        return [
            _Form([self._mask_id] * length, [(n, p) for n, p in numbered if len(p) == length])
            for length in lengths
        ]

    def encode(
        self, examples: Sequence[TextExample], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Put each text into the prompt, a row a form; segments are 1 where the answer is.

        A text that is too long is cut at its end; the prompt never is.
        """
        first, last = tokenizer.around
        last = [i for i in last if i != tokenizer.pad_id]
        before = first + tokenizer.pieces(self._prompt.before)
        between = tokenizer.pieces(self._prompt.between)
        after = tokenizer.pieces(self._prompt.after) + last
        longest = max(len(form.filling) for form in self._forms)
        room = tokenizer.max_length - len(before) - len(between) - longest - len(after)
        if room < 1:
            raise UserError(
                f"--prompt: it and the answers fill all of the {tokenizer.max_length} tokens that "
                "the model reads; write a shorter one",
                status=EXIT_BAD_INPUT,
            )
        rows, segments, truncated = [], [], 0
        for example in examples:
            text = tokenizer.pieces(example.text)
            truncated += len(text) > room
            start = [*before, *text[:room], *between]
            for form in self._forms:
                row = [*start, *form.filling, *after]
                mark = np.zeros(len(row), dtype=np.int8)
                mark[len(start) : len(start) + len(form.filling)] = 1
                rows.append(np.array(row, dtype=np.int32))
                segments.append(mark)
        number = {name: i for i, name in enumerate(labels)}
        classes = np.array([number[e.label] if e.label else 0 for e in examples], dtype=np.int64)
        tokens, starts = join(rows)
        return Encoded(
            *(examples, tokens, starts, classes, truncated),
            segments=np.concatenate(segments),
            rows_per_item=len(self._forms),
        )

    @torch.no_grad()
    def infer(self, net: LanguageModel, batch: Mapping[str, Tensor]) -> Outputs:
        """Log-probabilities (classes,) of each text, from the scores of the answers."""
        scores = self.score(net, batch)
        if self.prior is not None:
            scores = scores - self.prior.to(scores.device)
        return self.reduce(scores, batch)

    def score(self, net: LanguageModel, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean log-probability of each class's answer, (B, classes), fp32."""
        shape = (-1, len(self._forms), batch["input_ids"].shape[-1])  # (B, forms, T)
        ids, mask, marks = (
            batch[name].view(shape) for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        scores = torch.empty(len(ids), len(self._pieces), device=ids.device)
        for row, form in enumerate(self._forms):  # one at a time: memory doesn't grow with classes
            found = self._answer_logits(net, ids[:, row], mask[:, row], marks[:, row] > 0)
            told = found.view(len(ids), len(form.filling), -1)  # (B, pieces, V)
            for number, pieces in form.answers:
                at = torch.arange(len(pieces), device=ids.device)
                scores[:, number] = told[:, at, torch.tensor(pieces, device=ids.device)].mean(-1)
        return scores

    def _answer_logits(
        self, net: LanguageModel, ids: Tensor, mask: Tensor, is_answer: Tensor
    ) -> Tensor:
        """Log-probabilities (answer tokens of all rows, V) at the answers' places."""
        hidden = net.trunk(ids, mask)
        places = is_answer
        if self._mask_id is None:  # what precedes a token tells it
            places = torch.cat([is_answer[:, 1:], torch.zeros_like(is_answer[:, :1])], dim=1)
        picked = hidden[places]
        if self._mask_id is not None:
            picked = net.get_submodule("transform")(picked)
        logits = linear_cross_entropy.logits(
            picked,
            net.output_weight(),
            bias=net.output_bias_in_memory(),
            vocab_size=net.config.vocab_size,
            softcap=net.config.logit_softcap,
        )
        return logits.float().log_softmax(-1)


def open_zero_shot(
    directory: Path, keys: TaskKeys, prompt: Prompt, labels: Sequence[str], *, calibrates: bool
) -> Opened:
    """Open a language model to classify by. Raises UserError, status 2.

    calibrates: take off what each answer scores without a text, so that a common word has no
    advantage (Zhao et al. 2021, "Calibrate Before Use").
    """
    try:
        net = load_pretrained(directory)
    except CheckpointError as error:
        raise UserError(
            f"{error}; zero-shot needs a language model", status=EXIT_BAD_INPUT
        ) from error
    assert isinstance(net, LanguageModel)
    tokenizer = TextTokenizer(directory, net.config)
    mask_id = None if net.config.causal else tokenizer.mask_id
    if mask_id is None and not net.config.causal:
        raise UserError(
            f"{directory}: its tokenizer has no mask token to put in the answer's place; name it "
            "in tokenizer_config.json (mask_token)",
            status=EXIT_BAD_INPUT,
        )
    task = ZeroShot(keys, prompt, tokenizer, mask_id=mask_id)
    if calibrates:
        nothing = task.encode([TextExample(1, "", None)], labels, tokenizer)
        batch = nothing.batch(np.array([0]), tokenizer.pad_id)
        tensors = {name: torch.as_tensor(value) for name, value in batch.items()}
        with torch.inference_mode():
            task.prior = task.score(net, tensors)[0].clone()
    return Opened(net, task, list(labels), tokenizer)
