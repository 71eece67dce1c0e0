"""Training of the demo model: its torch model is the engine's and transformers'; the way from dialogues to scores.

Needs torch (and transformers for one test), which the package does not: skipped without.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; it is needed to train, not to run")

from harness import Model  # noqa: E402

from blackwell_infer import LLM  # noqa: E402
from blackwell_infer.models import hybrid  # noqa: E402
from blackwell_infer.ops import ref  # noqa: E402
from blackwell_infer.quant import FORMATS  # noqa: E402
from blackwell_infer.quant.encode_fp import encode_fp  # noqa: E402
from tools.demo_model import checkpoint, data, evaluate, export, feed, score, train  # noqa: E402
from tools.demo_model.bpe import Vocabulary  # noqa: E402
from tools.demo_model.delta import gated_delta, unit_lower_inverse  # noqa: E402
from tools.demo_model.model import DemoModel, borders, initialize  # noqa: E402
from tools.demo_model.nvfp4 import as_nvfp4, stored  # noqa: E402
from tools.demo_model.optimizer import orthogonalise  # noqa: E402
from tools.demo_model.shape import SHAPES  # noqa: E402

SHAPE = SHAPES["smoke"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def random_model(seed: int) -> Any:
    """Weights that bfloat16 holds, no vector at its start value."""
    torch.manual_seed(seed)
    model = DemoModel(SHAPE)
    initialize(model, seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_((2 * p).bfloat16())
            elif name.rpartition(".")[2] == "weight":
                p.add_(0.2 * torch.randn(p.shape))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random")
    train.make_tokenizer(out, SHAPE.vocab_size, 0, None)
    checkpoint.save(out, SHAPE, dict(random_model(1).named_parameters()), Vocabulary(out / "tokenizer.json").added)
    return out


@pytest.fixture(scope="module")
def ids() -> Any:
    return torch.randint(0, SHAPE.vocab_size, (1, 128), generator=torch.Generator().manual_seed(3))


def outputs(folder: Path, ids: Any) -> tuple[Any, Any, Any]:
    """(hidden, logits, logits of the MTP head) of the torch model over one conversation."""
    model = checkpoint.load(folder, SHAPE)
    at = borders(torch.zeros(ids.shape, dtype=torch.int32), SHAPE)
    with torch.no_grad():
        hidden, _ = model.hidden(ids, at)
        drafted, _ = model.draft(ids, hidden, at)
        return hidden[0].numpy(), model.logits(hidden)[0].numpy(), model.logits(drafted)[0, :-1].numpy()


def test_chunks_give_what_the_recurrence_gives() -> None:
    torch.manual_seed(0)
    b, t, h, dk, dv = 2, 192, 3, 16, 24
    q, k, v = (torch.randn(b, t, h, d, dtype=torch.float64) for d in (dk, dk, dv))
    k = k / k.norm(dim=-1, keepdim=True)
    g, beta = -torch.rand(b, t, h, dtype=torch.float64), torch.rand(b, t, h, dtype=torch.float64)
    g[:, 50] = -60
    given = [x.requires_grad_() for x in (q, k, v, g, beta)]
    state, steps = torch.zeros(b, h, dk, dv, dtype=torch.float64), []
    for i in range(t):
        state = state * g[:, i].exp()[..., None, None]
        change = (v[:, i] - torch.einsum("bhk,bhkv->bhv", k[:, i], state)) * beta[:, i][..., None]
        state = state + k[:, i][..., None] * change[..., None, :]
        steps.append(torch.einsum("bhk,bhkv->bhv", q[:, i], state))
    expected, got = torch.stack(steps, 1), gated_delta(*given)
    assert (got - expected).abs().max() < 1e-12
    along = torch.randn(expected.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((got * along).sum(), given),
        torch.autograd.grad((expected * along).sum(), given),
        strict=True,
    ):
        assert (ours - theirs).abs().max() < 1e-11


def test_inverse_of_unit_lower_matrices() -> None:
    a = torch.randn(3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tril(-1) * 0.3
    eye = torch.eye(64, dtype=torch.float64)
    assert (unit_lower_inverse(a) @ (eye + a) - eye).abs().max() < 1e-10


def test_conversations_of_a_row_do_not_see_each_other(ids: Any) -> None:
    model = random_model(2).eval()
    number = torch.zeros(1, 128, dtype=torch.int32)
    number[:, 70:] = 1
    with torch.no_grad():
        both, _ = model.hidden(ids, borders(number, SHAPE))
        second = torch.nn.functional.pad(ids[:, 70:], (0, 6))
        alone, _ = model.hidden(second, borders(torch.zeros(1, 64, dtype=torch.int32), SHAPE))
    assert (both[:, 70:] - alone[:, :58]).abs().max() < 1e-4


def test_the_engine_computes_what_is_trained(folder: Path, ids: Any) -> None:
    hidden, logits, drafts = outputs(folder, ids)
    with LLM(str(folder), device="numpy", max_context=256) as llm:
        got = llm.score(ids[0].tolist(), logits=True).logits
    assert got is not None and np.abs(got - logits).max() < 1e-3 * max(1.0, np.abs(logits).max())
    engine = Model(folder)
    batch = engine.batch(ids[0].numpy())
    engine.length += len(batch.ids)
    states = list(hybrid.hidden_states(ref, engine.cfg, engine.params, engine.state, batch, engine.dtype))
    assert np.abs(np.asarray(states[-1]) - hidden).max() < 1e-3
    draft = engine.family.draft
    assert draft is not None
    head, kv = draft.build(engine.cfg, engine.load), engine.cache(engine.table.shape[1], draft.cache(engine.cfg))
    engine.reset()
    batch = engine.batch(ids[0, 1:].numpy())
    y = draft.forward(ref, engine.cfg, engine.params, head, kv, batch, np.asarray(states[-1])[:-1], engine.dtype)
    assert np.abs(np.asarray(engine.family.logits(ref, engine.cfg, engine.params, y)) - drafts).max() < 1e-3 * max(
        1.0, np.abs(drafts).max()
    )


def test_transformers_computes_what_is_trained(folder: Path, ids: Any) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed; it is a second opinion only"
    )
    _, logits, _ = outputs(folder, ids)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert (
        type(theirs).__name__ == "Qwen3_5MoeForCausalLM"
        and not report["missing_keys"]
        and not report["unexpected_keys"]
    )
    with torch.no_grad():
        assert np.abs(theirs(ids).logits[0].numpy() - logits).max() < 1e-4 * max(1.0, np.abs(logits).max())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made = next(itertools.islice(data.training(0), 5, None))
    text = evaluate.prompt_text(made)
    assert tokenizer(text)["input_ids"] == Vocabulary(folder / "tokenizer.json").encode(text)
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True).endswith(
        "<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("scale", (1.0, 1e-3))
def test_training_rounds_to_nvfp4_as_the_encoder_does(scale: float) -> None:
    w = torch.randn(48, 128, generator=torch.Generator().manual_seed(1)).mul_(scale).bfloat16().float()
    w[3, 16:32] = 0
    encoded = encode_fp(w.numpy(), "nvfp4")
    expected = FORMATS["nvfp4"].dequantize(encoded)
    assert np.abs(as_nvfp4(w).numpy() - expected).max() <= 1e-6 * np.abs(expected).max()
    experts = torch.randn(3, 2 * 32, 64, generator=torch.Generator().manual_seed(2)).bfloat16().float()
    got = stored("mlp.experts.gate_up_proj", experts)
    assert torch.equal(got[1, 32:], as_nvfp4(experts[1, 32:])) and torch.equal(stored("mlp.gate.weight", w), w)


def test_orthogonalised_matrices() -> None:
    for shape in ((3, 64, 32), (32, 64)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.4 and values.max() < 1.4


def test_targets_stay_in_their_conversation(folder: Path) -> None:
    rows = np.stack(list(itertools.islice(data.rows(Vocabulary(folder / "tokenizer.json"), 0, 0, 512), 2)))
    step = feed.step_of(rows, CPU)
    flat, number = rows[:, 0].reshape(-1), rows[:, 2]
    for wanted, ahead in ((step.next, 1), (step.after, 2)):
        at = wanted.at.numpy()
        assert np.array_equal(flat[at + ahead], wanted.ids.numpy())
        assert np.array_equal(number.reshape(-1)[at], number.reshape(-1)[at + ahead]) and (at % 512 < 512 - ahead).all()
        assert (rows[:, 1].reshape(-1)[at + ahead] > 0).all() and abs(float(wanted.weights.sum()) - 1) < 1e-5


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path) -> None:
    """Dialogues, tokenizer, training, export, loading, scores: in a minute, so nothing is learned but the format."""
    trained, out = tmp_path / "trained", tmp_path / "out"
    arguments = [
        "--out",
        str(trained),
        "--shape",
        "smoke",
        "--steps",
        "40",
        "--batch",
        "2",
        "--length",
        "512",
        "--workers",
        "1",
        "--tests",
        "1",
        "--test",
        "2",
        "--every",
        "20",
    ]
    assert train.main(arguments) == 0
    lines = [json.loads(line) for line in (trained / "train.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.4 and lines[-1]["tokens"] == 40 * 2 * 512
    assert export.main([str(trained), str(out)]) == 0
    figures, wrong = score.measure(str(out), "numpy", 1, 0, None)
    assert 1 < figures["perplexity of answers"] < SHAPE.vocab_size and 0 <= figures["arithmetic"] <= 1
    assert all(entry["given"] != entry["wanted"] for entry in wrong)
