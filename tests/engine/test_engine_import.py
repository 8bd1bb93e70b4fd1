"""What importing the engine needs and leaves behind, each in a fresh interpreter."""

import os
import subprocess
import sys

import pytest


def run_python(code: str, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key != "NO_TORCH_COMPILE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=kept | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torch", "moshi"])
def test_missing_extra_says_what_to_install(missing: str) -> None:
    output = run_python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pipecat_duplex.session import MissingExtra\n"
        "try: import pipecat_duplex.engine.torch\n"
        "except MissingExtra as error: print(error)"
    )
    assert f"needs {missing}" in output
    assert "pip install 'pipecat-duplex[moshi]'" in output


@pytest.mark.slow
def test_compiler_is_declined_without_a_trace() -> None:
    code = (
        "import os, torch; torch.cuda.is_available = lambda: False\n"
        "import pipecat_duplex.engine.torch\n"
        "from moshi.modules.rope import apply_rope\n"
        "print(hasattr(apply_rope, '__wrapped__'), os.environ.get('NO_TORCH_COMPILE'))"
    )
    assert run_python(code) == "False None"
    assert run_python(code, NO_TORCH_COMPILE="") == "True"


def test_the_engine_itself_needs_no_torch() -> None:
    code = (
        "import sys, pipecat_duplex.engine\n"
        "print([name for name in ('torch', 'moshi', 'onnxruntime', 'huggingface_hub')"
        " if name in sys.modules])"
    )
    loaded = run_python(code.replace("pipecat_duplex.engine", "pipecat.services.llm_service"))
    assert run_python(code) == loaded


def test_loading_a_checkpoint_asks_for_the_extra(tiny_checkpoint) -> None:
    output = run_python(
        "import asyncio, sys; sys.modules['torch'] = None\n"
        "from pipecat_duplex.engine import Engine\n"
        "from pipecat_duplex.session import MissingExtra\n"
        f"try: asyncio.run(Engine.load({str(tiny_checkpoint)!r}))\n"
        "except MissingExtra as error: print(error)"
    )
    assert "pip install 'pipecat-duplex[moshi]'" in output


@pytest.mark.slow
def test_onnx_runtime_sends_nothing_and_writes_nothing_into_the_home_folder(tmp_path) -> None:
    """Unless it is asked to, by a variable that the user sets."""
    code = (
        "import asyncio, os\n"
        "for name in ('ORT_DISABLE_TELEMETRY', 'ORT_TELEMETRY_DISABLED', 'CI', 'TF_BUILD',"
        " 'GITHUB_ACTIONS', 'XDG_CACHE_HOME', 'PYTEST_CURRENT_TEST'): os.environ.pop(name, None)\n"
        f"os.environ['HOME'] = {str(tmp_path)!r}\n"
        "from pipecat_duplex.engine import Engine\n"
        "async def main():\n"
        "    engine = await Engine.load('embedded')\n"
        "    await engine.close()\n"
        "asyncio.run(main())\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert run_python(code) == "1"
    assert not [path for path in tmp_path.rglob("*") if "onnx" in str(path).lower()]
    asked = "import os, pipecat_duplex; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run_python(asked, ORT_DISABLE_TELEMETRY="0") == "0"
