"""Anthropic's client: an answer, and a stream. Run: bwinfer serve, then this with its address."""
import sys

from anthropic import Anthropic

with Anthropic(base_url=sys.argv[1], api_key="any") as client:
    question = [{"role": "user", "content": "What is 12 times 12?"}]
    message = client.messages.create(model="default", max_tokens=100, messages=question)
    print(message.content[0].text, message.usage.output_tokens)

    with client.messages.stream(model="default", max_tokens=100, messages=question) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()
