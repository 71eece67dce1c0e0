"""OpenAI's asynchronous client: several streams at once. Run: bwinfer serve, then this with its address."""
import asyncio
import sys

from openai import AsyncOpenAI


async def ask(client: AsyncOpenAI, question: str) -> str:
    stream = await client.chat.completions.create(model="default", temperature=0, stream=True,
                                                  messages=[{"role": "user", "content": question}])
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def main() -> None:
    questions = ["What is 12 times 12?", "What is 7 plus 8?", "Who are you?"]
    async with AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="any") as client:
        for question, answer in zip(questions, await asyncio.gather(*(ask(client, q) for q in questions)), strict=True):
            print(question, answer)


asyncio.run(main())
