"""OpenAI's client: an answer, a stream, a tool, a pydantic model. Run: bwinfer serve, then this with its address."""
import json
import sys

from openai import OpenAI
from pydantic import BaseModel


class City(BaseModel):
    name: str
    country: str


WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}

with OpenAI(base_url=sys.argv[1] + "/v1", api_key="any") as client:
    question = [{"role": "user", "content": "What is 12 times 12?"}]
    print(client.chat.completions.create(model="default", messages=question, temperature=0).choices[0].message.content)

    for chunk in client.chat.completions.create(model="default", messages=question, temperature=0, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    talk = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = client.chat.completions.create(model="default", messages=talk, tools=[WEATHER], tool_choice="required",
                                           temperature=0).choices[0].message
    talk.append(asked.model_dump(exclude_none=True))
    for call in asked.tool_calls:
        print(call.function.name, json.loads(call.function.arguments))
        talk.append({"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny", "temperature": 21}'})
    print(client.chat.completions.create(model="default", messages=talk, tools=[WEATHER],
                                         temperature=0).choices[0].message.content)

    found = client.chat.completions.parse(model="default", temperature=0, response_format=City, max_tokens=100,
                                           messages=[{"role": "user", "content": "Name a city and its country."}])
    print(repr(found.choices[0].message.parsed))
