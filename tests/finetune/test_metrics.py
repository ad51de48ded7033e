import numpy as np
import pytest
from sklearn.metrics import classification_report

from finetune import metrics
from finetune.metrics import report, report_text, scores

NAMES = ["a", "b", "never", "macro avg"]
GOLD = np.array([0, 0, 0, 0, 1, 1, 1, 3, 3, 3])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 3, 3, 1])
# a: 3 of 4 found, 4 predicted. b: 2 of 3 found, 4 predicted. macro avg: 2 of 3 found, 2 predicted.
F1 = {"a": 2 * 3 / (4 + 4), "b": 2 * 2 / (3 + 4), "macro avg": 2 * 2 / (3 + 2)}


def test_scores_by_hand():
    found = scores(GOLD, PREDICTED)
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["macro_f1"] == pytest.approx(sum(F1.values()) / 3)


def test_report_by_hand():
    found = report(GOLD, PREDICTED, NAMES)
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["labels"] == NAMES
    assert found["confusion_matrix"] == [[3, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 2]]
    b = found["classes"]["b"]
    assert (b["precision"], b["recall"], b["support"]) == (0.5, pytest.approx(2 / 3), 3)
    assert b["f1-score"] == pytest.approx(F1["b"])
    assert found["classes"]["never"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 0}
    macro, weighted = found["macro avg"], found["weighted avg"]
    assert macro["precision"] == pytest.approx((3 / 4 + 2 / 4 + 2 / 2) / 3)
    assert macro["f1-score"] == pytest.approx(sum(F1.values()) / 3)
    expected = (4 * F1["a"] + 3 * F1["b"] + 3 * F1["macro avg"]) / 10
    assert weighted["f1-score"] == pytest.approx(expected)
    assert (macro["support"], weighted["support"]) == (10, 10)


def test_the_table_is_that_of_the_classes_that_occur():
    names = [NAMES[i] for i in (0, 1, 3)]
    expected = classification_report(
        [names.index(NAMES[i]) for i in GOLD],
        [names.index(NAMES[i]) for i in PREDICTED],
        target_names=names, digits=4, zero_division=0,
    )  # fmt: skip
    assert report_text(GOLD, PREDICTED, NAMES) == expected
    assert "never" not in expected


def test_sets_of_which_one_class_occurs():
    """scikit-learn takes a single column for two classes, and would count what is absent."""
    gold = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    predicted = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    for columns in (3, 1):
        found = metrics.set_report(
            gold[:, :columns], predicted[:, :columns], ["a", "b", "c"][:columns]
        )
        assert (found["micro_f1"], found["macro_f1"], found["accuracy"]) == (0, 0, 0.5)
        assert found["classes"]["a"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 1}


def test_a_table_of_sets_says_what_the_report_says():
    gold, predicted = np.array([[1], [0], [0], [0]]), np.array([[0], [1], [0], [0]])
    line = metrics.set_report_text(gold, predicted, ["a"]).splitlines()[2]
    assert line.split() == ["a", "0.0000", "0.0000", "0.0000", "1"]
    draw = np.random.default_rng(3)
    gold, predicted = (draw.random((40, 3)) < 0.4 for _ in range(2))
    theirs = classification_report(
        gold, predicted, target_names=["a", "b", "c"], digits=4, zero_division=0
    )
    wanted = [line.split() for line in theirs.splitlines() if "samples" not in line]
    ours = metrics.set_report_text(gold, predicted, ["a", "b", "c"]).splitlines()
    assert [line.split() for line in ours] == wanted
