"""Pipecat's own console in a real Chromium, built from its npm packages, with the quickstart bot.

The packages are kept in pytest's cache folder. The console is voice-ui-kit's ``ConsoleTemplate`` on
client-js and small-webrtc-transport, as they are published.
"""

import asyncio
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.chromium import Tab, chromium, find_chromium
from tests.pipeline import silence, speech

pytest.importorskip("aiortc", reason="needs the webrtc extra")
pytest.importorskip("uvicorn", reason="needs the webrtc extra")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium found"),
    pytest.mark.needs("npm"),
]

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).parent / "console"
OPTIONAL_TRANSPORTS = ("daily", "livekit", "moq", "websocket")
RATE_HZ = 48_000

SENTENCES = [
    "Once there was a small cat who wanted to see the sea.",
    "She walked for three days.",
    "At last she saw the water and went home and slept.",
]
STORY = " ".join(SENTENCES * 4)
REPLY = "All right."

BOT = f"""
import sys
from fastapi.staticfiles import StaticFiles
from pipecat.runner.run import app, main
from examples import quickstart
from examples.quickstart import bot
from pipecat_duplex.scripted import Script, ScriptedBackend

script = Script(opening={STORY!r}, replies=[{REPLY!r}], yield_steps=8)
quickstart.backend = ScriptedBackend(script)
app.mount("/console", StaticFiles(directory=sys.argv.pop(), html=True))
main()
"""


@pytest.fixture(scope="module")
def console(request: pytest.FixtureRequest) -> Path:
    """Build the console and return the folder of its page."""
    package = (SOURCES / "package.json").read_bytes()
    name = f"console-{hashlib.sha256(package).hexdigest()[:12]}"
    folder = Path(request.config.cache.mkdir(name))
    if not (folder / "installed").exists():
        (folder / "package.json").write_bytes(package)
        install = "npm install --ignore-scripts --no-audit --no-fund --no-package-lock"
        try:
            subprocess.run(
                install.split(), cwd=folder, check=True, capture_output=True, timeout=240
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm cannot install the console's packages: {error}")
        (folder / "installed").touch()

    page = folder / "page"
    page.mkdir(exist_ok=True)
    shutil.copy(SOURCES / "index.html", page)
    shutil.copy(folder / "node_modules/@pipecat-ai/voice-ui-kit/dist/voice-ui-kit.css", page)
    shutil.copy(SOURCES / "console.jsx", folder)
    build = [
        *("npx", "esbuild", "console.jsx", "--bundle", "--format=esm", "--jsx=automatic"),
        *("--define:process.env.NODE_ENV='production'", "--outfile=page/console.js"),
        *(f"--external:@pipecat-ai/{name}-transport" for name in OPTIONAL_TRANSPORTS),
    ]
    built = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return page


@pytest.fixture
async def bot_url(console: Path, tmp_path: Path):
    """Run the quickstart bot with a scripted agent, and return the console's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("-t", "webrtc", "--host", "127.0.0.1", "--port", str(port), str(console))
    with (tmp_path / "bot.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", BOT, *arguments),
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        async with asyncio.timeout(60):
            while not await _listens(port):
                assert process.returncode is None, (tmp_path / "bot.log").read_text()
                await asyncio.sleep(0.1)
        yield f"http://localhost:{port}/console/"
        process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """Silence, in which the agent begins its story, and then somebody who talks over it."""
    path = tmp_path / "microphone.wav"
    pcm = [silence(20, RATE_HZ), speech("barge_in", RATE_HZ), silence(60, RATE_HZ)]
    soundfile.write(path, np.concatenate(pcm), RATE_HZ, subtype="PCM_16")
    return path


CONNECT = "[...document.querySelectorAll('button')].find((b) => b.innerText === 'Connect')"

# The conversation, from the agent's name to the time; all texts that were shown are kept.
CONVERSATION = """
window.conversation = () => {
    const panels = [...document.querySelectorAll('[role=tabpanel][id$=content-conversation]')];
    const text = panels.map((panel) => panel.innerText).find((text) => text) ?? '';
    const said = [];
    for (const part of text.split(/^assistant$/m).slice(1))
        said.push(part.replace(/\\d+:\\d\\d:\\d\\d [AP]M[^]*/, '').replace(/\\s+/g, ' ').trim());
    // On a machine that stands still, words come too late to be heard and are marked.
    return said.join(' ').replace(/\\[not heard: (.*?)\\]/g, '$1');
};
window.shown = [];
setInterval(() => {
    const text = conversation();
    if (text !== shown.at(-1)) shown.push(text);
}, 40);
"""


async def connected(tab: Tab, url: str) -> None:
    await tab.open(url)
    await tab.js(CONVERSATION)
    await tab.until("document.body.innerText.includes('INITIALIZED')")
    await tab.js(f"{CONNECT}.click()")
    await tab.until("document.body.innerText.includes('Disconnect')", timeout_secs=40)


async def test_words_sentences_and_an_interruption(bot_url: str, microphone: Path, tmp_path: Path):
    async with chromium(tmp_path / "profile", microphone) as tab:
        await connected(tab, bot_url)

        # Words show while the sentence is still being said, and then the whole sentence.
        await tab.until(f"conversation().includes({SENTENCES[0]!r})", timeout_secs=40)
        shown = await tab.js("shown")
        partly = [text for text in shown if text and len(text) < len(SENTENCES[0])]
        assert len(partly) >= 3, shown
        await tab.until(f"conversation().includes({' '.join(SENTENCES[:2])!r})")

        # Talked over, the agent stops: the rest of its story is never shown, and its reply follows.
        await tab.until(f"conversation().endsWith({REPLY!r})", timeout_secs=40)
        said = await tab.js("conversation()")
        story = said.split(REPLY)[0].strip()
        assert STORY.startswith(story) and story != STORY, said
        assert re.fullmatch(r"(All right\.\s?)+", said[len(story) :].strip()), said
        kinds = await tab.js("serverMessages.map((message) => message.type)")
        assert "duplex-yield" in kinds
        assert [line for line in tab.console if "WebGL" not in line] == []
