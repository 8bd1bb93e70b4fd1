"""A worker without a model: what is left is what the road does. Arguments as for ``serve``."""

import argparse

from pipecat_duplex.commands.serve import ServeOptions, run_serve
from pipecat_duplex.scripted import Script, ScriptedBackend

parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--slots", type=int)
parser.add_argument("--drain-secs", type=float)
args = parser.parse_args()
run_serve(
    ServeOptions(host=args.host, port=args.port, slots=args.slots, drain_secs=args.drain_secs),
    ScriptedBackend(Script(remembers=True, step_secs=0.002), slots=args.slots),
)
