"""Conversations as their files have them."""

from finetune.tasks import task_of
from finetune.tasks.config import TaskKeys
from tests.finetune.toys import write_jsonl


def read_conversations(path, **keys):
    return task_of(TaskKeys(kind="instruct", **keys)).read(path)


def test_a_system_beside_the_turns_is_heard(tmp_path):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [{"system": "Be terse.", "conversations": turns}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    ((example,), problems) = read_conversations(path)
    assert problems == []
    assert [turn.role for turn in example.turns] == ["system", "user", "assistant"]
    twice = [{"system": "x", "conversations": [{"from": "system", "value": "y"}, *turns]}]
    (problem,) = read_conversations(write_jsonl(tmp_path / "b.jsonl", twice)).problems
    assert "says twice what the system says" in problem
    blank = write_jsonl(tmp_path / "c.jsonl", [{**rows[0], "system": "  "}])
    assert [turn.role for turn in read_conversations(blank).examples[0].turns] == [
        "user",
        "assistant",
    ]


def test_a_file_to_predict_on_has_its_own_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt\nq\n")
    task = task_of(TaskKeys(kind="instruct", columns=["prompt", "response"]))
    (found,) = task.stream(path, labelled=False)
    assert [(turn.role, turn.content) for turn in found.turns] == [("user", "q")]
