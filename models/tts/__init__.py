"""Text-to-speech engines, one per file; engines do not import one another. `ENGINES`: short name → `module:Class`."""

ENGINES = {
    "hibari": "models.tts.hibari:HibariTTS",
    "coqui": "models.tts.coqui:CoquiTTS",
    "openai": "models.tts.openai:OpenAITTS",
}
