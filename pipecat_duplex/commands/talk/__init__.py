"""``pipecat-duplex talk``: a conversation in the browser."""
