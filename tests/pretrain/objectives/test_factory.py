"""Every objective as a config makes it, behind the real loader and tokenizer."""

import json
from collections import Counter
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from data_prep.loader import Loader
from data_prep.shards import Shards
from data_prep.tokenizer import SpecialTokens
from pretrain.config import PretrainConfig
from pretrain.objectives import make_objective
from pretrain.objectives.factory import vocabulary

Settings = dict[str, Any]
WAYS: list[tuple[str, Settings]] = [
    ("causal_lm", {"data": {"packing": "concat"}}),
    ("causal_lm", {"data": {"packing": "best_fit"}}),
    ("prefix_lm", {"data": {"packing": "documents"}}),
    ("prefix_lm", {"data": {"packing": "best_fit"}}),
    ("fill_in_the_middle", {}),
    ("masked_lm", {}),
    ("masked_lm", {"masking": {"unit": "word"}}),
    ("masked_lm", {"masking": {"unit": "span"}, "data": {"packing": "concat"}}),
    ("masked_lm", {"masking": {"unit": "word", "segmenter": "jieba"}}),
    ("masked_lm_nsp", {}),
    ("masked_lm_sop", {"masking": {"unit": "span"}}),
]


@pytest.fixture
def make(bert_corpus: Path, fim_corpus: Path) -> Callable[..., tuple[PretrainConfig, Shards]]:
    def made(objective: str, settings: Settings) -> tuple[PretrainConfig, Shards]:
        if settings.get("masking", {}).get("segmenter") == "jieba":
            pytest.importorskip("jieba")
        path = fim_corpus if objective == "fill_in_the_middle" else bert_corpus
        data = {"train": str(path), "seq_len": 40, **settings.get("data", {})}
        keys = {**settings, "objective": objective, "data": data, "steps": 1}
        return PretrainConfig(**keys), Shards(path)

    return made


def loader(config: PretrainConfig, shards: Shards, **ranks: int) -> Loader:
    objective = make_objective(config, [shards], config.run.seed)
    return Loader(
        [(shards, 1.0)],
        global_batch_size=8,
        seed=config.run.seed,
        layout=objective.layout,
        collate=objective.collate,
        **ranks,
    )


@pytest.mark.parametrize(("objective", "settings"), WAYS)
def test_ranks_and_restarts_change_nothing(make, objective: str, settings: Settings) -> None:
    config, shards = make(objective, settings)
    whole = loader(config, shards)
    parts = [loader(config, shards, rank=rank, world_size=4) for rank in range(4)]
    batches = [next(whole) for _ in range(6)]
    again = loader(config, shards)
    again.load_state_dict(whole.state_dict() | {"step": 4})
    for step, batch in enumerate(batches):
        shares = [part.batch(step) for part in parts]
        for name in set(batch) - {"cu_seqlens"}:
            assert torch.equal(torch.cat([share[name] for share in shares]), batch[name]), name
        if step >= 4:
            resumed = next(again)
            assert all(torch.equal(resumed[name], batch[name]) for name in batch)
    assert not torch.equal(batches[0]["targets"], batches[1]["targets"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("objective", "settings"), WAYS)
def test_what_a_data_worker_gets_makes_the_same_batches(make, objective, settings) -> None:
    """All that an objective holds can be copied to a worker, without the files that are open."""
    config, shards = make(objective, settings)
    own = loader(config, shards)
    batches = [own.batch(step) for step in range(3)]
    sent = ForkingPickler.dumps(own.batch)
    assert len(sent) < 2e6 + 20 * shards.tokens  # the mixture's table; no dictionary of jieba's
    copied = ForkingPickler.loads(sent)
    assert own.shards[0]._open
    assert not copied.__self__.shards[0]._open, "the files' bytes would travel too"
    assert all(equal(copied(step), batch) for step, batch in enumerate(batches))


def test_workers_find_chinese_words(make) -> None:
    config, shards = make("masked_lm", {"masking": {"unit": "word", "segmenter": "jieba"}})
    own, theirs = loader(config, shards), loader(config, shards, workers=2)
    assert all(equal(next(own), next(theirs)) for _ in range(4))
    theirs.close()


def originals(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Masked inputs with the hidden tokens put back."""
    return torch.where(batch["targets"] != -100, batch["targets"], batch["input_ids"])


@pytest.mark.parametrize(("objective", "settings"), WAYS)
def test_an_epoch_holds_every_token_once(make, objective: str, settings: Settings) -> None:
    config, shards = make(objective, settings)
    tokens = SpecialTokens(shards.tokenizer_dir)
    epoch = loader(config, shards)
    found: Counter[int] = Counter()
    used = replaced = 0
    for step in range(-(-epoch.samples_per_epoch // 8)):
        for row, sample in enumerate(epoch.samples(step)):
            if step * 8 + row >= epoch.samples_per_epoch:
                continue  # of the next epoch
            one = make_objective(config, [shards], 0).collate([sample])
            seen = originals(one) if objective.startswith("masked") else one["input_ids"]
            found.update(seen[0, : int(one["tally"][0, 0])].tolist())
            used += int(one["tally"][0, 0])
            replaced += int(one["tally"][0, 1])
    assert used == found.total()
    expected = Counter(np.concatenate([shards[i] for i in range(len(shards))]).tolist())
    ordinary = [t for t in range(tokens.vocab_size) if t not in tokens.special_ids]
    if objective == "masked_lm_nsp":
        assert replaced > 0
        return
    assert replaced == 0 or objective == "masked_lm_sop"
    if objective in ("masked_lm", "masked_lm_sop"):
        kept = sum(found[t] for t in ordinary) + replaced
        assert kept == sum(expected[t] for t in ordinary)
    if objective == "masked_lm":
        assert all(found[t] == expected[t] for t in ordinary)
        framed = found[tokens.cls_id]
        assert framed == epoch.packing_report().segments
    if objective == "causal_lm":
        # Best-fit inputs are shifted by one: each piece begins with the token before it.
        assert used == shards.tokens


def test_masked_batches_of_real_data(make) -> None:
    config, shards = make("masked_lm", {})
    tokens = SpecialTokens(shards.tokenizer_dir)
    special = torch.tensor(sorted(tokens.special_ids))
    kept = masked = changed = 0
    for _, batch in zip(range(30), loader(config, shards), strict=False):
        hidden = batch["targets"] != -100
        assert not torch.isin(batch["targets"][hidden], special).any()
        now, was = batch["input_ids"][hidden], batch["targets"][hidden]
        is_mask = now == tokens.mask_id
        assert not torch.isin(now[~is_mask], special).any()
        assert int(now.max()) < shards.vocab_size
        masked += int(is_mask.sum())
        kept += int((now == was).sum())
        changed += int((~is_mask & (now != was)).sum())
    total = masked + kept + changed
    assert abs(masked / total - 0.8) < 4 * (0.16 / total) ** 0.5
    assert abs(changed / total - 0.1) < 4 * (0.09 / total) ** 0.5 + 0.01


def test_the_vocabulary_of_random_tokens(bert_corpus: Path) -> None:
    tokens = SpecialTokens(bert_corpus)
    found = vocabulary(tokens, eod_id=3)
    assert found.mask_id == 4
    assert found.ordinary.tolist() == list(range(5, Shards(bert_corpus).vocab_size))
    assert np.flatnonzero(found.is_special).tolist() == [0, 1, 2, 3, 4]
    # What ends a document is never hidden, even where the tokenizer calls it ordinary.
    found = vocabulary(tokens, eod_id=9)
    assert 9 not in found.ordinary
    assert found.is_special[9]


def test_ids_without_a_token_are_not_drawn(tmp_path: Path) -> None:
    entries = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "b": 11}
    model = tokenizers.models.WordPiece(entries, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    roles = {f"{name[1:-1].lower()}_token": name for name in list(entries)[:5]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    found = vocabulary(SpecialTokens(tmp_path), eod_id=3)
    assert found.ordinary.tolist() == [5, 11]
    assert len(found.is_special) == 12


def test_words_of_jieba_are_hidden_whole(make) -> None:
    """北京, 老师 and 喜欢 are two tokens each in this vocabulary, and one word."""
    shares = {}
    for segmenter in ("none", "jieba"):
        config, shards = make("masked_lm", {"masking": {"unit": "word", "segmenter": segmenter}})
        tokens = SpecialTokens(shards.tokenizer_dir)
        both = [tokens.id_of("北"), tokens.id_of("京")]
        assert None not in both
        whole = half = 0
        for _, batch in zip(range(30), loader(config, shards), strict=False):
            text, hidden = originals(batch), batch["targets"] != -100
            first = (text[:, :-1] == both[0]) & (text[:, 1:] == both[1])
            sums = (hidden[:, :-1].int() + hidden[:, 1:].int())[first]
            whole += int((sums == 2).sum())
            half += int((sums == 1).sum())
        shares[segmenter] = (whole, half)
    assert shares["jieba"][1] == 0
    assert shares["jieba"][0] > 10
    assert shares["none"][1] > 10
