"""Greedy answers to held-out dialogues, in torch, and their scores. Slow but simple: no cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from .bpe import Vocabulary
from .delta import CHUNK
from .dialogue import Dialogue, prompt_text
from .model import DemoModel, borders
from .scorers import correct, well_formed

LONGEST = 112
GROUPS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("arithmetic", "reasoning"),
    "tools": ("tool",),
    "json": ("json",),
    "rest": (
        "units",
        "dates",
        "follow",
        "spelling",
        "sorting",
        "counting",
        "facts",
        "words",
        "memory",
        "unknown",
        "refusal",
        "identity",
        "copying",
        "tool_answer",
        "tool_none",
    ),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    dialogue: Dialogue
    text: str
    ids: tuple[int, ...]
    drafted: int
    accepted: int


def answer_of(text: str) -> str:
    """The answer without reasoning and end token."""
    return text.partition("<|im_end|>")[0].rpartition("</think>")[2].strip()


@torch.no_grad()
def answers(
    model: DemoModel, vocabulary: Vocabulary, dialogues: Sequence[Dialogue], device: torch.device, batch: int = 256
) -> list[Answer]:
    """In the order of the dialogues. Drafts of the MTP head are compared with the greedy tokens."""
    prompts = [vocabulary.encode(prompt_text(made)) for made in dialogues]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: dict[int, Answer] = {}
    stop = vocabulary.added["<|im_end|>"]
    for start in range(0, len(order), batch):
        members = order[start : start + batch]
        lengths = torch.tensor([len(prompts[i]) for i in members], device=device)
        total = -(-(int(lengths.max()) + LONGEST) // CHUNK) * CHUNK
        ids = torch.full((len(members), total), vocabulary.end, device=device)
        for row, i in enumerate(members):
            ids[row, : len(prompts[i])] = torch.tensor(prompts[i], device=device)
        at = lengths.clone()
        going = torch.arange(len(members), device=device)
        for _ in range(LONGEST):
            width = -(-int(at[going].max()) // CHUNK) * CHUNK
            here = borders(torch.zeros(len(going), width, dtype=torch.int32, device=device), model.shape)
            hidden, _ = model.hidden(ids[going, :width], here)
            best = model.logits(hidden[torch.arange(len(going), device=device), at[going] - 1]).argmax(-1)
            ids[going, at[going]] = best
            going = going[best != stop]
            if not len(going):
                break
            at[going] += 1
        here = borders(torch.zeros(len(members), total, dtype=torch.int32, device=device), model.shape)
        hidden, _ = model.hidden(ids, here)
        drafts = model.logits(model.draft(ids, hidden, here)[0]).argmax(-1)
        same = F.pad(drafts[:, :-2] == ids[:, 2:], (0, 2))
        position = torch.arange(total, device=device)
        counted = (position >= lengths[:, None] - 1) & (position + 2 <= at[:, None])
        for row, i in enumerate(members):
            made = tuple(ids[row, lengths[row] : at[row] + 1].tolist())
            text = vocabulary.decode(made)
            out[i] = Answer(
                dialogues[i], answer_of(text), made, int(counted[row].sum()), int((counted[row] & same[row]).sum())
            )
    return [out[i] for i in range(len(dialogues))]


def scores(given: Sequence[Answer]) -> dict[str, float]:
    """Shares of right answers by group, of well-formed calls and JSON, and of accepted drafts."""
    out: dict[str, float] = {}
    for group, kinds in GROUPS.items():
        members = [a for a in given if a.dialogue.kind in kinds]
        if members:
            out[group] = sum(correct(a.text, a.dialogue.expect) for a in members) / len(members)
            if group in ("tools", "json"):
                out[f"{group} well formed"] = sum(well_formed(a.text, a.dialogue.expect) for a in members) / len(
                    members
                )
    drafted = sum(a.drafted for a in given)
    out["mtp"] = sum(a.accepted for a in given) / drafted if drafted else 0.0
    return out
