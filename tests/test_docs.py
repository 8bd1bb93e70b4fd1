"""The Python examples in the documentation run, in their order."""

import ast
import asyncio
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.scripted import ScriptedBackend
from tests.pipeline import Speaker

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md*"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


class Transport:
    """What the examples take for granted."""

    def input(self):
        return Speaker(realtime=False)

    def output(self):
        return Speaker(realtime=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_examples_run(page):
    names = {"transport": Transport()}
    for source in BLOCK.findall(page.read_text()):
        code = compile(source, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await asyncio.wait_for(result, 60)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    missing = [t for t in LINK.findall(page.read_text()) if not (page.parent / t).exists()]
    assert not missing


def test_the_architecture_names_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`", page)
    missing = [name for name in named if not (ROOT / "pipecat_duplex" / name).exists()]
    assert len(named) > 20 and not missing


def test_the_video_is_small():
    assert (ROOT / "docs" / "demo.mp4").stat().st_size < 3_000_000


def test_the_page_for_pipecat_lists_what_there_is():
    page = (ROOT / "docs" / "pipecat.mdx").read_text()
    arguments = inspect.signature(DuplexLLMService).parameters
    for name, default in re.findall(r'ParamField path="(\w+)".*default="([^"]+)"', page):
        assert str(arguments[name].default) == default, name
    settings = {field.name for field in fields(DuplexLLMService.Settings)}
    table = page.partition("### Settings")[2].partition("## Usage")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) <= settings
    handlers = page.partition("## Event Handlers")[2]
    named = set(re.findall(r"^\| `(on_\w+)`", handlers, re.MULTILINE))
    assert named and named <= set(DuplexLLMService(backend=ScriptedBackend())._event_handlers)
