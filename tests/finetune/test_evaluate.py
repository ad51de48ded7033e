import numpy as np
import pytest
import torch

from finetune.evaluate import outputs
from finetune.tasks import task_of
from finetune.tasks.classification import TextExample, prediction
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model import load_pretrained
from runtime.dist import Ranks
from runtime.errors import UserError
from tests.finetune.toys import animal_texts, checkpoint

CPU = Ranks(0, 0, 1, torch.device("cpu"))
TASK = task_of(TaskKeys())


def log_probabilities(net, data, batch_size):
    return np.stack(outputs(net, TASK, data, CPU, batch_size, pad_id=0))


@pytest.fixture(params=["llama", "gpt2"])
def parts(tmp_path, request):
    directory = checkpoint(tmp_path / "base", family=request.param, dropout=0.5)
    net = load_pretrained(directory, head="sequence", num_labels=3)
    net.config = net.config.model_copy(update={"pad_token_id": 0})
    torch.nn.init.normal_(net.get_submodule("score").weight)
    rows = animal_texts(23)
    texts = [TextExample(i, row["text"], row["label"]) for i, row in enumerate(rows)]
    tokenizer = TextTokenizer(directory, net.config, 32)
    return net, TASK.encode(texts, ["cat", "cow", "dog"], tokenizer)


def test_padding_and_order_change_nothing(parts):
    net, data = parts
    with torch.no_grad():  # each text alone: nothing is padded
        alone = torch.cat([net(torch.tensor(data.row(i))[None].long()).logits for i in range(23)])
    expected = alone.log_softmax(-1).numpy()
    assert np.ptp(expected, axis=0).min() > 0.1  # the texts differ
    for batch_size in (1, 4, 23, 100):
        assert np.abs(log_probabilities(net, data, batch_size) - expected).max() <= 1e-5


def test_each_example_is_computed_once(parts, monkeypatch):
    net, data = parts
    seen = []
    real = net.forward
    monkeypatch.setattr(net, "forward", lambda **b: seen.append(len(b["input_ids"])) or real(**b))
    log_probabilities(net, data, 4)
    assert seen == [4, 4, 4, 4, 4, 3]


def test_dropout_is_off_and_comes_back(parts):
    net, data = parts
    quiet = log_probabilities(net.eval(), data, 8)
    assert np.array_equal(log_probabilities(net.train(), data, 8), quiet)
    assert net.training


def test_a_model_that_diverged_is_named(parts):
    net, data = parts
    with torch.no_grad():
        net.get_submodule("score").weight[0] = float("nan")
    with pytest.raises(UserError, match=r"training diverged; lower optim\.lr"):
        log_probabilities(net, data, 8)


def test_a_prediction_is_a_row_of_probabilities():
    row = np.log(np.array([0.25, 0.5, 0.25], dtype=np.float32))
    assert prediction(row, ["x", "y", "z"]) == {
        "predicted": "y",
        "probability": 0.5,
        "probabilities": {"x": 0.25, "y": 0.5, "z": 0.25},
    }
