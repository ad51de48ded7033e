"""What a session tells of its data."""

from pathlib import Path

from data_prep.loader import Loader
from data_prep.samples import Layout
from pretrain.session import _attention_length


def test_the_tokens_that_one_attends_to(corpus: Path) -> None:
    """FLOPs are counted for what attention does, and never for more."""
    found = {}
    for packing in ("concat", "documents", "best_fit", "padded"):
        layout = Layout(packing, 64, lookahead=int(packing in ("concat", "documents")))
        loader = Loader([(corpus, 1.0)], layout=layout, global_batch_size=4)
        found[packing] = _attention_length(loader)
        if packing == "documents":
            batches = [loader.batch(step) for step in range(loader.samples_per_epoch // 4)]
            isolated = sum(len(batch["cu_seqlens"]) - 1 for batch in batches)
            mean = sum(batch["input_ids"].numel() for batch in batches) / isolated
            assert abs(found[packing] - mean) < 0.1 * mean
    assert found["concat"] == 64
    assert found["documents"] < found["best_fit"] == found["padded"] < 64
