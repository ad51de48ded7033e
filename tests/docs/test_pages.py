"""What can be told of the pages without running anything."""

import importlib.util
import re

import pytest

from finetune.config import FinetuneConfig
from launch.reference import markdown
from launch.schema import CONFIGS
from tests.architecture.source import ROOMS
from tests.docs.pages import CHINESE, Page, page, pages
from tests.processes import ROOT

LANGUAGES = {"bash", "yaml", "python", "text", "json"}
OTHERS = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")
LINKED = [*pages(), *map(page, OTHERS)]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page.name).parent / path if path else ROOT / page.name
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            found = Page(page.name, target.read_text(encoding="utf-8")).anchors
            assert anchor in found, f"{page.name} links to {link}; there are {sorted(found)}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_block_says_its_language(page: Page) -> None:
    assert page.text.count("\n```") % 2 == 0
    for block in page.blocks:
        assert block.language in LANGUAGES, f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_commands_in_prose_exist(page: Page) -> None:
    """`python -m PACKAGE COMMAND …` between other words is not run; its names must be right."""
    for module, word in re.findall(r"`python -m ([\w.]+) ?([a-z][\w-]*(?![\w./]))?", page.prose):
        if module.split(".")[0] not in ROOMS:
            continue
        assert importlib.util.find_spec(module) is not None, f"{page.name}: python -m {module}"
        room = ROOT / module.replace(".", "/")
        files = [*room.rglob("*.py")] or [room.with_suffix(".py")]
        texts = [file.read_text(encoding="utf-8") for file in files]
        assert not word or any(f'"{word}"' in text for text in texts), f"{page.name}: {word}"


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_configuration_reference_is_up_to_date(stage: str) -> None:
    path = ROOT / "docs" / "configuration" / f"{stage}.md"
    wanted = markdown(stage, CONFIGS[stage])
    assert path.read_text(encoding="utf-8") == wanted, (
        f"run: python -m launch schema {stage} --markdown > {path.relative_to(ROOT)}"
    )


def test_the_reference_has_keys_bounds_units_and_entries_of_lists() -> None:
    pretrain = (ROOT / "docs/configuration/pretrain.md").read_text(encoding="utf-8")
    assert "| `optim.lr` | float, > 0 | `0.0003` | Peak learning rate |" in pretrain
    assert "| `data.stages[].from_step` | int, ≥ 1, steps | **required** |" in pretrain
    data = (ROOT / "docs/configuration/data_prep.md").read_text(encoding="utf-8")
    assert "| `clean[rule=gopher_quality].min_words` | int, ≥ 0 | `50` |" in data
    every = markdown("finetune", FinetuneConfig)
    assert "| `precision` | auto \\| fp32 \\| bf16 | `auto` |" in every


def test_the_two_readmes_are_alike() -> None:
    english, chinese = page("README.md"), page(CHINESE)
    assert [level for level, _ in chinese.headings] == [level for level, _ in english.headings]
    for ours, theirs in zip(english.blocks, chinese.blocks, strict=True):
        assert (theirs.language, _code(theirs.text)) == (ours.language, _code(ours.text))
    assert _others(chinese) == _others(english)
    rows = [text.count("\n|") for text in (english.prose, chinese.prose)]
    assert rows[0] == rows[1], "tables of different length"


def _code(text: str) -> list[str]:
    """A block without its comments, which are translated."""
    lines = [re.sub(r"(^|\s+)#\s.*$", "", line).rstrip() for line in text.splitlines()]
    return [line for line in lines if line]


def _others(readme: Page) -> list[str]:
    """Its links, but for the one to the other language."""
    return sorted(link for link in readme.links if not link.startswith("README"))
