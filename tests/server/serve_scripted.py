"""A server process with a scripted agent, for tests that stop or kill one.

python -m tests.server.serve_scripted OPENING [NAME=VALUE ...]
"""

import sys

from pipecat_duplex.commands.serve import ServeOptions, run_serve
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import BackendHealth


class GivesUp(ScriptedBackend):
    """A backend that has given up as soon as the server listens."""

    def health(self) -> BackendHealth:
        return BackendHealth(False, "it gave up")


def main() -> None:
    opening, *options = sys.argv[1:]
    values = dict(option.split("=", 1) for option in options)
    script = Script(
        opening=opening,
        opening_step=2,
        step_secs=0.001,
        remembers=values.get("remembers") == "yes",
    )
    backend = ScriptedBackend(script, slots=4)
    if "gives_up" in values:
        backend = GivesUp(script, slots=4)
    code = run_serve(
        ServeOptions(
            slots=4,
            host=values.get("host", "127.0.0.1"),
            port=int(values.get("port", 0)),
            drain_secs=float(values.get("drain_secs", 30)),
            log_format="json" if values.get("log") == "json" else "text",
        ),
        backend,
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
