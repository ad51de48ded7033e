"""What a model in training makes of the prompts of evaluate.prompts: samples over time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from data_prep.shards import Shards
from data_prep.tokenizer import SpecialTokens
from model.generate import pad_left, stream
from model.heads import CausalLM
from pretrain.config import PretrainConfig
from runtime.engine import Engine
from runtime.seed import mix


class Guess(TypedDict):
    """What a masked model puts in one hidden place."""

    hidden: str | None  # what stood there; None where the prompt itself had the mask token
    guess: str
    probability: float


class Sample(NamedTuple):
    """One prompt and what became of it, as samples.jsonl holds it."""

    prompt: str  # of a masked model with its mask tokens
    text: str  # the prompt as the model continued it, or filled it in
    guesses: list[Guess]


class Samples:
    """Continues the prompts, or fills them in: the same draws at every step and world size.

    Random numbers come from generators of its own, so that training draws what it would without.
    begins: whether a causal model was trained to see the end-of-document token before each text.
    """

    def __init__(self, config: PretrainConfig, train: Shards, *, begins: bool) -> None:
        self._settings, self._seed = config.evaluate, config.run.seed
        self._is_compiled = config.compile
        self._gathers = config.parallel.zero_stage == 3
        self._tokenizer: Any = Tokenizer.from_file(str(train.tokenizer_dir / "tokenizer.json"))
        self._special = SpecialTokens(train.tokenizer_dir)
        self._eod = train.eod_id
        self._begins = begins

    def __call__(self, engine: Engine, beat: Callable[[], None]) -> list[Sample]:
        """Those of the main rank; none on the others. Collective.

        Under ZeRO-3 every rank goes along, as each forward pass gathers the parameters from all.
        """
        if not (engine.ranks.is_main or self._gathers):
            return []
        with engine.evaluating(), self._uncompiled(engine.module):
            if isinstance(engine.module, CausalLM):
                found = self._continued(engine.module, engine.ranks.device, beat)
            else:
                found = list(self._filled(engine.module, engine.ranks.device, beat))
        return found if engine.ranks.is_main else []

    @contextmanager
    def _uncompiled(self, net: Any) -> Iterator[None]:
        """Nothing is compiled for a few rows of ever new lengths."""
        kept, net.trunk.attends_flex = net.trunk.attends_flex, False
        try:
            with torch.compiler.set_stance("force_eager") if self._is_compiled else nullcontext():
                yield
        finally:
            net.trunk.attends_flex = kept

    def _continued(
        self, net: CausalLM, device: torch.device, beat: Callable[[], None]
    ) -> list[Sample]:
        prompts = self._settings.prompts
        rows = [self._begun(prompt) for prompt in prompts]
        input_ids, mask = pad_left(rows, device)
        room = self._settings.sample_tokens
        if net.config.positions == "learned":
            room = min(room, net.config.max_seq_len + 1 - input_ids.shape[1])
        columns = []
        for column in stream(
            net,
            input_ids,
            room,
            attention_mask=mask,
            seed=mix(self._seed, 0),
            ends_early=not self._gathers,
            temperature=self._settings.temperature,
        ):
            beat()
            columns.append(column.tolist())
        ends = set(net.config.eos_token_ids)
        found = []
        for row, prompt, new in zip(rows, prompts, zip(*columns, strict=True), strict=True):
            kept = next((place for place, token in enumerate(new) if token in ends), len(new))
            begin = 1 if self._begins or not prompt else 0
            text = self._tokenizer.decode([*row[begin:], *new[:kept]])
            found.append(Sample(prompt, text, []))
        return found

    def _begun(self, prompt: str) -> list[int]:
        ids = self._special.encoded(prompt)
        return [self._eod, *ids] if self._begins or not ids else ids

    def _filled(
        self, net: nn.Module, device: torch.device, beat: Callable[[], None]
    ) -> Iterator[Sample]:
        mask_id = self._special.mask_id
        assert mask_id is not None, "the config was checked"
        for number, prompt in enumerate(self._settings.prompts):
            ids = self._special.encoded(prompt)
            places = [place for place, token in enumerate(ids) if token == mask_id]
            hidden: list[int | None] = [None] * len(places)
            if not places:
                places = self._choose(ids, number)
                hidden = [ids[place] for place in places]
            for place in places:
                ids[place] = mask_id
            beat()
            logits = net(self._framed(ids, device)).logits[0, 1:-1]
            probabilities = logits[places].float().softmax(-1)
            probabilities[:, sorted(self._special.special_ids)] = (
                0  # no text is filled in with [PAD]
            )
            chosen = probabilities.max(-1)
            filled = [*ids]
            for place, token in zip(places, chosen.indices.tolist(), strict=True):
                filled[place] = token
            guesses = [
                Guess(
                    hidden=None if was is None else self._word(was),
                    guess=self._word(token),
                    probability=probability,
                )
                for was, token, probability in zip(
                    hidden, chosen.indices.tolist(), chosen.values.tolist(), strict=True
                )
            ]
            shown = self._tokenizer.decode(ids, skip_special_tokens=False)
            yield Sample(shown, self._tokenizer.decode(filled), guesses)

    def _framed(self, ids: Sequence[int], device: torch.device) -> torch.Tensor:
        """The text between [CLS] and [SEP], as in training. (1, T + 2)"""
        return torch.tensor([[self._special.cls_id, *ids, self._special.sep_id]], device=device)

    def _choose(self, ids: Sequence[int], number: int) -> list[int]:
        """Places to hide: 15 % of the tokens, at least one, as in BERT's training."""
        special = self._special.special_ids
        places = [place for place, token in enumerate(ids) if token not in special]
        count = max(1, round(0.15 * len(places)))
        random = np.random.default_rng(mix(self._seed, number))
        return sorted(random.choice(places, size=count, replace=False).tolist())

    def _word(self, token: int) -> str:
        return str(self._tokenizer.id_to_token(token))
