"""The pure logic of a conversation: no torch, no Pipecat, no input or output."""
