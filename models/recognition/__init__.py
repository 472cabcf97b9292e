"""Speech recognition. One engine a file; engines do not import one another. `ENGINES` maps short names to classes."""

ENGINES = {
    "whisper": "models.recognition.whisper:WhisperRecognizer",
    "openai": "models.recognition.openai:OpenAIRecognizer",
}
