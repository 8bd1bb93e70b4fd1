"""The recipe of the embedded model: speech, codec, dialogues, language model, checkpoint."""
