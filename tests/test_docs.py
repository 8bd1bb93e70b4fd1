"""The Python examples in the documentation run, in their order."""

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

from tests.pipeline import Speaker

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
