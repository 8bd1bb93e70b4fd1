"""How a checkpoint or a server converses: ``python -m benchmarks.duplex``.

Scripted users talk to it, each with a voice and a microphone of its own: they ask, pause inside a
sentence, talk over an answer, hum, and are silent at the start. They listen too, and only talk over
an answer when there is one. By the clock each of them stands at the end of a real pipeline; in lock
step (``--lockstep``) at a session itself, as fast as the model goes.

    speech.py      what users can say, by which voices
    users.py       what a user does, and when
    dialogue.py    what came of it: both voices, the words, the user's moments
    stage.py       by the clock through a pipeline, or in lock step
    figures.py     the definitions, and the figures by them
    recogniser.py  how well the agent is understood
    report.py      the tables and pictures
"""
