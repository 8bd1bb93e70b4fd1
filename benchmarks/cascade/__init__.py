"""The duplex service beside a cascade, in one run: ``python -m benchmarks.cascade``.

The same scripted users talk by the clock to Pipecat's usual cascade, to the duplex service in front
of the same LLM, and to the duplex model by itself. All three have the same microphone and the same
loudspeaker, so that all times are the listener's.

    parts.py       Whisper, Piper and the LLM: what is optional, and where it comes from
    librarian.py   what the LLM answers
    scenes.py      what the users do
    agents.py      the three pipelines
    stage.py       microphone, loudspeaker and notes of what happened when
    figures.py     the definitions, and the figures by them
    contexts.py    whether the context is what was said and heard
    tool_call.py   a function that takes three seconds
    report.py      the tables and the picture
"""
