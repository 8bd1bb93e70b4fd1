"""The subcommands of ``pipecat-duplex``: a file or a package each."""
