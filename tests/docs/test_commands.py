"""Every command of README and docs is run, or stands on a short list that says why not."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from data_prep.config import DataPrepConfig
from finetune.config import FinetuneConfig
from finetune.multitask.config import MultitaskConfig
from pretrain.config import PretrainConfig
from runtime.config import load
from tests.docs.exceptions import COVERED, LAUNCHED, PRINTED, REPLACED, SMALLER
from tests.docs.made import write_models
from tests.docs.pages import CHINESE, Block, Command, Page, commands_of, page, pages
from tests.docs.workshop import Workshop
from tests.faults.harness import fork_server
from tests.processes import ROOT

# The Chinese README has the same blocks as the English one (test_the_two_readmes_are_alike).
WITH_COMMANDS = [p for p in pages() if p.name != CHINESE and any(p.commands())]
WITH_YAML = [p for p in pages() if any(b.language == "yaml" for b in p.blocks)]
ALL = [command for page in WITH_COMMANDS for command in page.commands()]
# The handbook's example (test_failures.py), a task of the evaluation harness, what a search covers.
NO_CONFIGS = ("wrong.yaml", "my-tasks/my_task.yaml", "space.yaml")
GPT = "docs/pretrain-gpt.md"
# A branch begins in the middle of a run.
_CHECKPOINT = r"(?<!branch_from=)runs/(\S+?)/checkpoints/step_(\d{8})"
MOST_COVERED = 24  # of about a hundred: a list that grows is a list that hides


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Workshop]]:
    """Make a workshop for the page of that name."""
    root = tmp_path_factory.mktemp("pages")
    write_models(root / "models")
    with fork_server(root) as server:

        def make(name: str) -> Workshop:
            folder = root / name.replace("/", "-")
            folder.mkdir()
            return Workshop(folder, root / "models", server)

        yield make


@pytest.fixture(scope="module")
def gpt(start: Callable[[str], Workshop]) -> Workshop:
    """What docs/pretrain-gpt.md leaves: prepared data and a run, which other pages go on with."""
    return _work_through(page(GPT), start(GPT))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(
    page: Page, start: Callable[[str], Workshop], gpt: Workshop
) -> None:
    if page.name == GPT:
        return  # the fixture has run them
    workshop = start(page.name)
    workshop.take(gpt, page.text)
    _work_through(page, workshop)


def _work_through(page: Page, workshop: Workshop) -> Workshop:
    """Write the page's configs, then run its commands and its Python, from top to bottom."""
    for block in page.blocks:
        if block.language == "yaml":
            workshop.write(block)
    done: set[str] = set()
    for block in page.blocks:
        if block.language == "python":
            workshop.python(block)
        if block.language != "bash":
            continue
        for command in commands_of(block):
            if command.text not in COVERED and command.text not in done:
                workshop.run(command)
                done.add(command.text)
    return workshop


def test_the_list_of_exceptions_is_short_and_true() -> None:
    written = {command.text for command in ALL}
    assert set(COVERED) <= written, f"on no page: {set(COVERED) - written}"
    assert len(COVERED) <= MOST_COVERED
    for text, covered in COVERED.items():
        source = (ROOT / covered.where).read_text(encoding="utf-8")
        assert covered.proof in source, f"{text}: not in {covered.where}"


def test_every_rule_that_makes_smaller_is_needed() -> None:
    for rule in SMALLER:
        assert any(re.fullmatch(rule.pattern, command.text) for command in ALL), rule.pattern
    for pattern in (LAUNCHED, PRINTED):
        assert any(pattern.fullmatch(command.text) for command in ALL), pattern
    for words in REPLACED:
        assert any(words in command.text for command in ALL), words


@pytest.mark.parametrize("page", WITH_YAML, ids=lambda page: page.name)
def test_every_yaml_block_is_a_config(page: Page, tmp_path: Path) -> None:
    for block in page.blocks:
        if block.language == "yaml" and block.file_name not in NO_CONFIGS:
            _load(block, tmp_path)


def _load(block: Block, folder: Path) -> None:
    """Read it as the config of its stage; a fragment gets what it leaves out."""
    keys = set(yaml.safe_load(block.text))
    path = folder / "config.yaml"
    path.write_text(block.text, encoding="utf-8")
    if keys & {"input", "clean", "dedup", "decontaminate", "tokenizer", "slurm", "executor"}:
        rest = [] if "input" in keys else ["input.paths=[x]", "output=y"]
        load(DataPrepConfig, path, rest)
    elif "tasks" in keys:
        load(MultitaskConfig, path)
    elif keys & {"task", "epochs", "patience"}:
        load(FinetuneConfig, path)
    else:
        load(PretrainConfig, path, [] if keys & {"steps", "tokens"} else ["steps=1"])


def test_steps_named_are_those_of_the_config() -> None:
    """`runs/X/checkpoints/step_N` on a page: N is the length of the run that X's config says."""
    named = set()
    for block in (b for found in pages() for b in found.blocks if b.language != "text"):
        for run, step in re.findall(_CHECKPOINT, block.text):
            named.add((block.page, run, int(step)))
    assert named
    for name, run, step in sorted(named):
        assert step == _length_of(run), f"{name}: {run} has {_length_of(run)} steps"


def _length_of(run: str) -> int:
    """The steps of the run of that name: a config on some page, or a shipped one."""
    texts = [b.text for p in pages() for b in p.blocks if b.language == "yaml"]
    texts += [p.read_text(encoding="utf-8") for p in (ROOT / "pretrain/configs").glob("*.yaml")]
    for text in texts:
        data = yaml.safe_load(text)
        if run in (data.get("run", {}).get("name"), data.get("run", {}).get("dir", "")[5:]):
            return PretrainConfig.model_validate(data).total_steps
    raise AssertionError(f"no config of a run {run}")


def test_commands_are_read_with_their_continued_lines() -> None:
    block = Block("x", 1, "bash", "a --b \\\n    c   # why\n# only a word\nd '#e' #f\n")
    assert list(commands_of(block)) == [Command("x", 2, "a --b c"), Command("x", 5, "d '#e' #f")]
