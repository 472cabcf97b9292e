"""Chat engines (language models), one per file. `ENGINES`: short name → `module:Class`."""

ENGINES = {
    "offline": "models.llm.offline:OfflineResponder",
    "openai": "models.llm.openai:OpenAIResponder",
}
