"""``pipecat-duplex bench``: how many callers this machine holds."""
