"""Answer every line of a text file in one batch; one JSON object per line comes out.

    python examples/batch_file.py MODEL prompts.txt > answers.jsonl
"""
import argparse
import json
from pathlib import Path

from blackwell_infer import LLM, Sampling

parser = argparse.ArgumentParser()
parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a hub id")
parser.add_argument("prompts", type=Path, help="one prompt per line")
parser.add_argument("--device", default="auto")
parser.add_argument("--max-tokens", type=int, default=32)
args = parser.parse_args()

prompts = [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line]
with LLM(args.model, device=args.device) as llm:
    outputs = llm.generate(prompts, Sampling(temperature=0, max_tokens=args.max_tokens))
    for prompt, out in zip(prompts, outputs, strict=True):
        print(json.dumps({"prompt": prompt, "text": out.text, "finish_reason": out.finish_reason}))
