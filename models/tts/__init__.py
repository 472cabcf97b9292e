"""Text to speech. One engine a file; engines do not import one another. `ENGINES` maps short names to classes."""

ENGINES = {
    "hibari": "models.tts.hibari:HibariTTS",
    "coqui": "models.tts.coqui:CoquiTTS",
    "openai": "models.tts.openai:OpenAITTS",
}
