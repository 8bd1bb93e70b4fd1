"""``pipecat-duplex converse``: a recording holds a conversation, in a real pipeline."""
