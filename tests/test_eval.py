"""``pipecat eval run`` drives the quickstart bot, as a user of Pipecat would."""

import asyncio
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("pipecat.evals.session", reason="this Pipecat has no evals")
pytest.importorskip("uvicorn", reason="needs Pipecat's runner")
pytest.importorskip("questionary", reason="`pipecat eval` needs questionary and jinja2")

ROOT = Path(__file__).parents[1]
SCENARIO = ROOT / "examples" / "evals" / "quickstart.yaml"

# The quickstart bot under Pipecat's runner, with a scripted agent in place of the model.
BOT = """
from examples import quickstart
from pipecat_duplex.scripted import Script, ScriptedBackend

story = "once there was a small cat who wanted to see the sea she walked for three days " * 2
quickstart.backend = ScriptedBackend(
    # The detector, which a busy machine delays, is to be heard before the yield.
    Script(replies=[story, "the kitchen is on the ground floor"], yield_steps=9), slots=2
)
bot = quickstart.bot

if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
"""

# From 1.13 on, evals go through the runner's WebSocket; before, the bot is the server.
THROUGH_THE_RUNNER = tuple(map(int, version("pipecat-ai").split(".")[:2])) >= (1, 13)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def wait_for_port(port: int, process: asyncio.subprocess.Process):
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return
    raise AssertionError("the bot ended before it listened")


async def run(*arguments: str, cwd: Path, name: str) -> asyncio.subprocess.Process:
    """Run Python, with its output in NAME.out and its log in NAME.err."""
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    with (cwd / f"{name}.out").open("w") as out, (cwd / f"{name}.err").open("w") as err:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=cwd,
            stdout=out,
            stderr=err,
            env={**os.environ, **environment},
        )


@pytest.mark.slow
async def test_the_quickstart_bot_passes_its_scenario(tmp_path: Path):
    port = free_port()
    (tmp_path / "scripted_bot.py").write_text(BOT)
    transport = [] if THROUGH_THE_RUNNER else ["-t", "eval"]
    url = f"ws://localhost:{port}" + ("/ws" if THROUGH_THE_RUNNER else "")
    bot = await run("scripted_bot.py", *transport, "--port", str(port), cwd=tmp_path, name="bot")
    try:
        await wait_for_port(port, bot)
        scenario = ("-m", "pipecat.evals", "run", str(SCENARIO), "--bot-url", url, "--verbose")
        evals = await run(*scenario, cwd=tmp_path, name="eval")
        async with asyncio.timeout(120):
            await evals.wait()
    finally:
        bot.kill()
        await bot.wait()
    verdict = (tmp_path / "eval.out").read_text()
    assert evals.returncode == 0, verdict + (tmp_path / "eval.err").read_text()
    assert "1/1 passed" in verdict
    captions = [
        line for line in (tmp_path / "bot.out").read_text().splitlines() if "agent: " in line
    ]
    assert "yielded to you" in captions[0]
    assert "the kitchen is on the ground floor" in captions[1]
