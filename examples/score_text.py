"""How likely a model finds a text: perplexity, and its most surprising tokens.

    python examples/score_text.py MODEL "Once upon a time there was a little girl."
"""
import argparse
import math

from blackwell_infer import LLM

parser = argparse.ArgumentParser()
parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a hub id")
parser.add_argument("text")
parser.add_argument("--device", default="auto")
args = parser.parse_args()

with LLM(args.model, device=args.device) as llm:
    ids = llm.tokenizer.encode(args.text)
    if len(ids) < 2:
        parser.error("the text has fewer than two tokens: nothing precedes the first one")
    logprobs = llm.score(ids).logprobs[1:].tolist()  # nothing precedes the first token
    print(f"{len(ids)} tokens, perplexity {math.exp(-sum(logprobs) / len(logprobs)):.2f}")
    for logprob, id in sorted(zip(logprobs, ids[1:], strict=True))[:5]:
        print(f"{logprob:8.3f}  {llm.tokenizer.decode([id])!r}")
