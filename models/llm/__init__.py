"""Language models that answer in a chat. One engine a file. `ENGINES` maps short names to classes."""

ENGINES = {
    "offline": "models.llm.offline:OfflineResponder",
    "openai": "models.llm.openai:OpenAIResponder",
}
