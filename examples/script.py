"""Answer one prompt, then stream another one token by token.

    python examples/script.py MODEL [--device numpy]
"""
import argparse

from blackwell_infer import LLM, Sampling

parser = argparse.ArgumentParser()
parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a hub id")
parser.add_argument("--device", default="auto")
args = parser.parse_args()

with LLM(args.model, device=args.device) as llm:
    out = llm.generate("Once upon a time", Sampling(temperature=0, max_tokens=32))
    print(out.text)
    print(f"[{out.finish_reason}, {out.usage.completion_tokens} tokens]")

    for event in llm.stream("One day, a little cat", Sampling(temperature=0.8, seed=1, max_tokens=32)):
        print(event.text, end="", flush=True)
    print()
