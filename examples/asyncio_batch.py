"""Many tasks of an asyncio program share one model; the engine runs their requests in one batch.

    python examples/asyncio_batch.py MODEL [--device numpy]
"""
import argparse
import asyncio

from blackwell_infer import LLM, Sampling

NAMES = ("Lily", "Tom", "Mia", "Ben")


async def tell(llm: LLM, name: str) -> str:
    """Stream one story; other tasks run meanwhile."""
    text = f"There was a child named {name}."
    async for event in llm.astream(text, Sampling(temperature=0.7, seed=7, max_tokens=24)):
        text += event.text
    return text


async def main(model: str, device: str) -> None:
    with LLM(model, device=device, max_batch=8) as llm:
        for story in await asyncio.gather(*(tell(llm, name) for name in NAMES)):
            print(story.replace("\n", " "))
        print(f"[{llm.stats().steps} steps for {llm.stats().generated_tokens} tokens]")


parser = argparse.ArgumentParser()
parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a hub id")
parser.add_argument("--device", default="auto")
args = parser.parse_args()
asyncio.run(main(args.model, args.device))
