"""A backend for workers of a fleet that tests start."""

from pipecat_duplex.fleet.options import WorkerOptions
from pipecat_duplex.scripted import Script, ScriptedBackend

COUNT = " ".join(f"word{number}" for number in range(400))


def make(options: WorkerOptions) -> ScriptedBackend:
    script = Script(opening=COUNT, opening_step=2, step_secs=0.001, remembers=True)
    return ScriptedBackend(script, slots=options.slots)
