"""Speech recognition engines, one per file; none imports another. `ENGINES`: short name → `module:Class`."""

ENGINES = {
    "whisper": "models.recognition.whisper:WhisperRecognizer",
    "openai": "models.recognition.openai:OpenAIRecognizer",
}
