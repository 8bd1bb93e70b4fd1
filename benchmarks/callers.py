"""Callers held in real time: by the engine in process, by its server, and by ``moshi.server``.

    python -m benchmarks.callers [--checkpoint embedded] [--secs 30] [--json callers.json]

Three searches in one run, with the same checkpoint and the same callers, who come and go: an engine
in one process with its callers; ``pipecat-duplex serve`` and the stock ``moshi.server``, each in a
process of its own and called over sockets on loopback. Callers of a server have processes of their
own as well, and what they cost is counted apart. Needs Linux, and the extra ``moshi``.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from pipecat_duplex.commands.bench.bench import find_held, loads_table
from pipecat_duplex.commands.bench.callers import WARM_UP_SECS
from pipecat_duplex.commands.bench.load import Load, LoadOptions, measure_load
from pipecat_duplex.engine.checkpoint import find_checkpoint

MOSHI_SERVER = Path(__file__).parents[1] / "harness" / "run_moshi_server.py"
"""Starts the stock server where there is no GPU, on one thread, as the engine runs."""

FIRST_CALLERS = 8
START_SECS = 300.0


@contextmanager
def running(
    *arguments: str, ready: str, folder: Path | None = None
) -> Iterator[tuple[subprocess.Popen, re.Match]]:
    """Run Python with these arguments, from when it has printed what matches ``ready``."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process, _wait_for(process, Path(f"/proc/self/fd/{output.fileno()}"), ready)
        finally:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen, output: Path, ready: str) -> re.Match:
    until_secs = time.monotonic() + START_SECS
    while True:
        text = output.read_text(errors="replace")
        found = re.search(ready, text)
        if found:
            return found
        if process.poll() is not None or time.monotonic() > until_secs:
            raise RuntimeError(f"it did not start: {text[-2000:]}")
        time.sleep(0.2)


def read_cpu_secs(process: subprocess.Popen) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_process(options: LoadOptions, process: subprocess.Popen) -> Load:
    """Measure a load on a server, with the server's own processor time."""
    before_secs = read_cpu_secs(process)
    load = measure_load(options)
    cpu_secs = read_cpu_secs(process) - before_secs
    return replace(load, model_cpu_cores=cpu_secs / (WARM_UP_SECS + options.secs))


def measure_our_server(options: LoadOptions) -> Load:
    """Measure a load on our server, started with as many slots as there are callers."""
    serve = ("serve", "--checkpoint", options.checkpoint, "--slots", str(options.callers))
    with running(
        *("-m", "pipecat_duplex.cli", *serve, "--port", "0"), ready=r"ws://\S+/api/chat"
    ) as (process, address):
        return measure_process(replace(options, url=address[0]), process)


def measure_moshi_server(options: LoadOptions) -> Load:
    """Measure a load on Kyutai's server, which takes one caller at a time."""
    files = find_checkpoint(options.checkpoint)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert files.config_path is not None
    # It looks for files that the config names in the current folder.
    folder = files.config_path.parent
    arguments = (
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--static", "none"),
        *("--config-path", str(files.config_path), "--moshi-weight", str(files.lm_weights)),
        *("--mimi-weight", str(files.mimi_weights), "--tokenizer", str(files.tokenizer)),
    )
    with running(str(MOSHI_SERVER), *arguments, ready="Running on", folder=folder) as (process, _):
        return measure_process(replace(options, url=f"ws://127.0.0.1:{port}"), process)


TARGETS = {
    "moshi.server": (measure_moshi_server, 1),
    "engine in process": (measure_load, FIRST_CALLERS),
    "pipecat-duplex serve": (measure_our_server, FIRST_CALLERS),
}
"""What is measured, how, and how many callers it begins with."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--secs", type=float, default=30.0)
    parser.add_argument("--only", choices=TARGETS, action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    results = {}
    for name in options.only or TARGETS:
        measure, first_callers = TARGETS[name]
        loads: list[Load] = []

        def measure_and_keep(load: LoadOptions, measure=measure, loads=loads) -> Load:
            loads.append(measure(load))
            return loads[-1]

        first = LoadOptions(first_callers, options.secs, options.checkpoint)
        held = find_held(first, measure_and_keep)
        console.print(loads_table(loads, name, first.playout_ms))
        for error in dict.fromkeys(error for load in loads for error in load.errors):
            console.print(f"error: {error}", style="red")
        console.print(f"{name}: {held} callers held in real time\n")
        results[name] = {"held": held, "loads": [asdict(load) for load in loads]}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
