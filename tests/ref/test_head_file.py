"""A head for guesses in a file of its own, and one that has embeddings and an output projection of its own."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from harness import Model
from test_hybrid import guesses, states
from tooling import load_tool

from blackwell_infer import LLM, Sampling, SessionError
from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.checkpoint.fingerprint import fingerprint
from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.load import load, survey
from blackwell_infer.errors import CheckpointError, ConfigError
from blackwell_infer.log import silent

DATA = ROOT / "tests" / "data"
DENSE, SPARSE = DATA / "qwen3_5", DATA / "qwen3_5_moe"
Values = np.ndarray[Any, Any]
Tensors = dict[str, Values]


def is_head(name: str) -> bool:
    return name.startswith("mtp.")


def save(tensors: Tensors, path: Path) -> Path:
    safetensors.numpy.save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)
    return path


def tensors_of(folder: Path) -> Tensors:
    return dict(safetensors.numpy.load_file(folder / "model.safetensors"))


def rewritten(source: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a folder with changed tensors."""
    shutil.copytree(source, target)
    save(change(tensors_of(source)), target / "model.safetensors")
    return target


def headless(source: Path, target: Path) -> Path:
    return rewritten(source, target, lambda t: {n: v for n, v in t.items() if not is_head(n)})


def head_of(source: Path, path: Path) -> Path:
    return save({n: v for n, v in tensors_of(source).items() if is_head(n)}, path)


def sharded(folder: Path) -> None:
    """One file becomes two and an index."""
    tensors, names = tensors_of(folder), {}
    for i, half in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        save({n: tensors[n] for n in half}, folder / shard)
        names |= dict.fromkeys(half, shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def said(model: Model) -> Values:
    """What the head says of a text [T - 1, V]."""
    ids = np.arange(3, 40) % model.cfg.vocab
    return guesses(model, ids, states(model, ids, 37)[-1], 20)[1]


@pytest.mark.parametrize("source", [DENSE, SPARSE])
@pytest.mark.parametrize(("name", "shards"), [("mtp.safetensors", False), ("model_mtp.safetensors", True),
                                              ("elsewhere.safetensors", False)])
def test_a_folder_whose_index_does_not_know_the_head(source: Path, name: str, shards: bool, tmp_path: Path) -> None:
    folder = headless(source, tmp_path / "m")
    if shards:
        sharded(folder)
    assert not any(is_head(n) for n in open_checkpoint(folder).tensors)
    found = name.startswith("else")
    path = head_of(source, (tmp_path if found else folder) / name)
    model = Model(folder, head=str(path) if found else "")
    assert (said(model) == said(Model(source))).all()
    assert {info.file for n, info in model.checkpoint.tensors.items() if is_head(n)} == {str(path)}


def copied(source: Path, target: Path, keep: Callable[[str], bool], more: Tensors | None = None,
           keys: dict[str, int | None] | None = None) -> Path:
    """A GGUF file with some of the tensors of another, with `more`, and with some keys (None: left out) changed."""
    reader, keys = gguf.GGUFReader(source), keys or {}
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch)
    for field in reader.fields.values():
        name = field.name.removeprefix(f"{arch}.")
        value = keys.get(name, field.contents())
        if value is not None and not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, value, field.types[0],
                                 field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if keep(tensor.name):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "m.gguf"
    load_tool("hf_to_gguf").convert(DATA / request.param, out, kind="f32", tokenizer=False)
    return out


def block(path: Path) -> tuple[str, int]:
    """The beginning of the names of the head's tensors, and the number of its block."""
    last = open_checkpoint(path).config["num_hidden_layers"]
    return f"blk.{last}.", last


def stored(path: Path, name: str) -> Values:
    return next(np.array(t.data) for t in gguf.GGUFReader(path).tensors if t.name == name)


@pytest.mark.parametrize("counted", [True, False])
def test_a_gguf_whose_head_is_a_gguf(whole: Path, counted: bool, tmp_path: Path) -> None:
    base, last = block(whole)
    keys: dict[str, int | None] = {} if counted else {"block_count": last, "nextn_predict_layers": None}
    model = copied(whole, tmp_path / "m.gguf", lambda n: not n.startswith(base), keys=keys)
    kept = (base, "token_embd.", "output")
    head = copied(whole, tmp_path / "mtp-m.gguf", lambda n: n.startswith(kept))
    assert not any(is_head(n) for n in open_checkpoint(model).tensors), "only in a folder it is looked for"
    want = said(Model(whole))
    assert (said(Model(model, head=str(head))) == want).all()
    assert (said(Model(tmp_path)) == want).all()
    head.unlink()
    head = copied(whole, tmp_path / "mtp-m.gguf", lambda n: n.startswith(base))
    assert (said(Model(tmp_path)) == want).all()


def own(source: Path, embed: Values | None, out: Values | None) -> Callable[[Tensors], Tensors]:
    more = {"mtp.embed_tokens.weight": embed, "mtp.lm_head.weight": out}
    return lambda t: t | {n: v for n, v in more.items() if v is not None}


def shared(source: Path) -> tuple[Values, Values]:
    """Embeddings and output projection of a model."""
    tensors = tensors_of(source)
    embed = next(v for n, v in tensors.items() if n.endswith("embed_tokens.weight"))
    return embed, tensors.get("lm_head.weight", embed)


@pytest.mark.parametrize("source", [DENSE, SPARSE])
def test_matrices_of_the_heads_own(source: Path, tmp_path: Path) -> None:
    model = Model(source)
    embed, out = shared(source)
    ids = np.arange(3, 40) % model.cfg.vocab
    hidden = states(model, ids, 37)[-1]
    want, logits = guesses(model, ids, hidden, 20)
    same = Model(rewritten(source, tmp_path / "same", own(source, embed, out)))
    assert (guesses(same, ids, hidden, 20)[1] == logits).all()

    other = Model(rewritten(source, tmp_path / "out", own(source, None, out[::-1])))
    y, got = guesses(other, ids, hidden, 20)
    assert (y == want).all() and (got[:, ::-1] != logits).sum() < got.size / 4, "rows in another order"
    assert np.abs(got - y.astype(np.float64) @ out[::-1].astype(np.float64).T).max() < 1e-4

    replaced = Model(rewritten(source, tmp_path / "in", lambda t: t | {
        n: v[::-1] for n, v in t.items() if n.endswith("embed_tokens.weight")} | {"lm_head.weight": out}))
    other = Model(rewritten(source, tmp_path / "own", own(source, embed[::-1], None)))
    (y, got), (y2, got2) = guesses(other, ids, hidden, 20), guesses(replaced, ids, hidden, 20)
    assert (y == y2).all() and (got == got2).all() and np.abs(y - want).max() > 0.01
    assert (other.prefill(ids, 37) == model.prefill(ids, 37)).all(), "the model itself keeps to its own"


def test_matrices_of_the_heads_own_in_gguf(whole: Path, tmp_path: Path) -> None:
    base, _ = block(whole)
    embed = stored(whole, "token_embd.weight")
    names = {t.name for t in gguf.GGUFReader(whole).tensors}
    out = stored(whole, "output.weight") if "output.weight" in names else embed
    want = said(Model(whole))

    def with_more(name: str, embedding: Values, projection: Values) -> Values:
        path = copied(whole, tmp_path / name, lambda n: True, {
            base + "nextn.embed_tokens.weight": embedding, base + "nextn.shared_head_head.weight": projection})
        return said(Model(path))

    assert (with_more("a.gguf", embed, out) == want).all()
    turned = with_more("b.gguf", embed, np.ascontiguousarray(out[::-1]))
    assert np.abs(turned[:, ::-1] - want).max() < 1e-4 and np.abs(turned - want).max() > 0.01
    assert np.abs(with_more("c.gguf", np.ascontiguousarray(embed[::-1]), out) - want).max() > 0.01


def test_a_head_whose_norm_is_the_models(whole: Path, tmp_path: Path) -> None:
    name = block(whole)[0] + "nextn.shared_head_norm.weight"
    without = copied(whole, tmp_path / "a.gguf", lambda n: n != name)
    equal = copied(whole, tmp_path / "b.gguf", lambda n: n != name, {name: stored(whole, "output_norm.weight")})
    got = said(Model(without))
    assert (got == said(Model(equal))).all() and np.abs(got - said(Model(whole))).max() > 0.01


def test_settings_name_the_file(tmp_path: Path) -> None:
    folder, head = headless(DENSE, tmp_path / "m"), head_of(DENSE, tmp_path / "h.safetensors")
    settings = EngineConfig(device="numpy", max_context=64, max_batch=2, speculate="mtp", mtp_file=str(head))
    loaded = load(str(folder), settings, silent)
    assert loaded.speculation.head and loaded.info.weight_bytes == load(
        str(DENSE), EngineConfig(device="numpy", max_context=64, max_batch=2, speculate="mtp"), silent
    ).info.weight_bytes
    assert fingerprint(open_checkpoint(folder)) != fingerprint(open_checkpoint(folder, str(head)))
    with pytest.raises(ConfigError, match=r"has no head for multi-token prediction; name a file.*mtp_file"):
        load(str(folder), EngineConfig(device="numpy", speculate="mtp"), silent)
    with pytest.raises(ConfigError, match=r"mtp_file = .*h.safetensors: models of the family llama take no head"):
        load(str(DATA / "llama"), settings, silent)


def test_a_session_saved_with_another_head_is_refused(tmp_path: Path) -> None:
    """The head's keys and values are among what was saved."""
    folder, head = headless(DENSE, tmp_path / "m"), head_of(DENSE, tmp_path / "h.safetensors")
    with LLM(folder, device="numpy", max_context=256, mtp_file=str(head)) as llm:
        llm.generate(list(range(3, 103)), Sampling(max_tokens=2))
        assert llm.save_prefix(tmp_path / "s", list(range(3, 103))) > 0
    with LLM(folder, device="numpy", max_context=256, mtp_file=str(head)) as llm:
        assert llm.load_prefix(tmp_path / "s") > 0
    with LLM(folder, device="numpy", max_context=256) as llm, pytest.raises(SessionError, match="another model"):
        llm.load_prefix(tmp_path / "s")


def test_what_is_no_head_of_this_model(tmp_path: Path) -> None:
    folder, head = headless(DENSE, tmp_path / "m"), tensors_of(DENSE)
    head = {n: v for n, v in head.items() if is_head(n)}

    def refused(tensors: Tensors, error: str, model: Path = folder) -> None:
        path = save(tensors, tmp_path / "h.safetensors")
        with pytest.raises(CheckpointError, match=error) as caught:
            survey(open_checkpoint(model, str(path)), EngineConfig(), on_host=True)
        assert str(path) in str(caught.value)

    refused({n: v for n, v in head.items() if n != "mtp.norm.weight"},
            r"mtp.norm.weight is missing, while mtp.fc.weight is there: .* is incomplete")
    refused({"model.norm.weight": np.ones(64, np.float32)}, r"h.safetensors: holds no tensors of a head")
    refused(head | {"mtp.fc.weight": np.ones((48, 96), np.float32)},
            r"mtp.fc.weight has shape \[48, 96\], the configuration asks for \[64, 128\]")
    embed, _ = shared(DENSE)
    refused(head | {"mtp.embed_tokens.weight": embed[:-1]}, r"mtp.embed_tokens.weight has shape")
    refused(head | {"mtp.lm_head.weight": embed[:, :-2]}, r"mtp.lm_head.weight has shape")
    refused(head, r"tensor 'mtp.fc.weight' is in .*qwen3_5/model.safetensors as well: .* a head of its own", DENSE)
    save(head, tmp_path / "m" / "mtp.safetensors")
    save(head, tmp_path / "m" / "more_mtp.safetensors")
    with pytest.raises(CheckpointError, match=r"more_mtp.safetensors|mtp.safetensors as well"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors: no such file"):
        open_checkpoint(folder, str(tmp_path / "nowhere.safetensors"))


def test_a_file_that_is_only_named_like_a_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(DENSE, tmp_path / "m")
    save({"other": np.ones(3, np.float32)}, tmp_path / "m" / "mtp.safetensors")
    assert "other" not in open_checkpoint(tmp_path / "m").tensors
    assert "mtp.safetensors holds no tensors mtp.*, so it is left out" in caplog.text


def test_a_gguf_head_of_another_model(whole: Path, tmp_path: Path) -> None:
    base, last = block(whole)
    model = copied(whole, tmp_path / "m.gguf", lambda n: not n.startswith(base))

    def refused(error: str, path: Path = model, **keys: int) -> None:
        head = copied(whole, tmp_path / "mtp-h.gguf", lambda n: n.startswith(base), keys=dict(keys))
        with pytest.raises(CheckpointError, match=error):
            open_checkpoint(path, str(head))
        head.unlink()

    refused(r"mtp-h.gguf: hidden_size is 96, that of .*m.gguf is 64: the head belongs", embedding_length=96)
    refused(r"mtp-h.gguf: vocab_size is 7, that of", vocab_size=7)
    refused(r"mtp-h.gguf: tensor 'mtp.*' is in .*m.gguf as well", whole)
    refused(r"mtp-h.gguf: is GGUF, the model .*m is safetensors: they store norms differently",
            headless(DENSE, tmp_path / "m"))
    refused(r"mtp-h.gguf: holds no tensors of a head", block_count=last + 3)
    with pytest.raises(CheckpointError, match=r"h.safetensors: is safetensors, the model .*m.gguf is GGUF"):
        open_checkpoint(model, str(head_of(DENSE, tmp_path / "h.safetensors")))
    for name in ("mtp-a.gguf", "mtp-b.gguf"):
        copied(whole, tmp_path / name, lambda n: n.startswith(base))
    with pytest.raises(CheckpointError, match=r"several heads .* name one with mtp_file: mtp-a.gguf, mtp-b.gguf"):
        open_checkpoint(tmp_path)
