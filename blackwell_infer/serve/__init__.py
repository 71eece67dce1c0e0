"""The HTTP server: OpenAI and Anthropic APIs over one `LLM`. Needs the extra `serve`."""
