"""The subcommands of ``pipecat-duplex``, one a file."""
