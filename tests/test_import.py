"""What an import takes with it."""

import subprocess
import sys

HEAVY = ("torch", "moshi", "matplotlib", "scipy", "soundfile", "typer", "rich", "onnxruntime")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_package_brings_nothing_heavy():
    """A bot whose model runs elsewhere needs no torch; Pipecat's own imports do not count."""
    extra = modules_after("import pipecat_duplex") - modules_after(
        "import pipecat.services.llm_service, pipecat.audio.vad.vad_analyzer"
    )
    assert [name for name in HEAVY if name in extra] == []


def test_the_conversation_knows_neither_torch_nor_pipecat():
    """Importing the package itself brings Pipecat in, so the room's own imports are read."""
    import ast
    from pathlib import Path

    import pipecat_duplex.conversation as room

    allowed = {"numpy", "pipecat_duplex"} | set(sys.stdlib_module_names)
    for path in Path(room.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                if name.startswith("pipecat_duplex"):
                    assert name.startswith(
                        ("pipecat_duplex.conversation", "pipecat_duplex.session")
                    ), f"{path.name} imports {name}"
