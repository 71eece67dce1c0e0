"""Saved prefixes and sessions: what comes back, what is refused, and that a refusal changes nothing. On NumPy, and with
-m gpu on a GPU."""
from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prefix import DATA, asking, at_rest, device, said, text  # noqa: F401  (device is a fixture)

from blackwell_infer import LLM, RequestError, SessionError
from blackwell_infer.checkpoint.fingerprint import fingerprint
from blackwell_infer.checkpoint.open import open_checkpoint
from blackwell_infer.cli import chat, session
from blackwell_infer.cli.screen import Screen
from blackwell_infer.cli.session import Session
from blackwell_infer.engine import saved

Open = Callable[..., LLM]
TOKENS = text(1, 150)


@pytest.fixture(params=("llama", "qwen3_5"))
def opened(request: pytest.FixtureRequest, device: str) -> Open:  # noqa: F811
    def make(name: str = request.param, **settings: Any) -> LLM:
        return LLM(str(DATA / name), **{"device": device, "dtype": "float32", "max_context": 256, "max_step_tokens": 16,
                                        **settings})
    return make


@pytest.fixture
def file(opened: Open, tmp_path: Path) -> Path:
    """A saved prefix of 128 tokens."""
    path = tmp_path / "talk.session"
    with opened() as llm:
        llm.generate(TOKENS, asking(1))
        assert llm.save_prefix(path, TOKENS, note="of mine") == 128
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    return path


def test_what_comes_back_is_as_if_it_had_been_read(opened: Open, file: Path) -> None:
    with opened(prefix_cache=False) as without:
        expected = said(without.generate(TOKENS, asking(20)))
    with opened() as llm:
        assert llm.load_prefix(file) == llm.load_prefix(file) == 128
        out = llm.generate(TOKENS, asking(20))
        assert said(out) == expected and out.usage.cached_tokens == 128
        assert at_rest(llm).prompt_tokens == 150 - 128
        again = file.with_name("again")
        assert llm.save_prefix(again, TOKENS, note="of mine") == 128
    mine, other = (saved.read(p, saved.opened(p).metadata["model"]) for p in (file, again))
    assert mine.tokens == other.tokens == tuple(TOKENS[:128])
    assert all(np.array_equal(mine.arrays[name], other.arrays[name]) for name in mine.arrays)
    assert mine.arrays.keys() == other.arrays.keys() and saved.note_of(file) == "of mine"


def test_it_joins_what_is_there_and_makes_room_for_itself(opened: Open, file: Path) -> None:
    with opened(kv_pages=8, max_batch=2) as llm:
        llm.generate(TOKENS[:40], asking(1))
        llm.generate(text(5, 170), asking(1))
        assert llm.load_prefix(file) == 128
        out = llm.generate(TOKENS, asking(1))
        assert out.usage.cached_tokens == 128 and at_rest(llm).pages_used == 0


def test_no_room_beside_what_runs_is_said(opened: Open, file: Path) -> None:
    with opened(kv_pages=8, max_batch=2, speculate="off") as llm:
        stream = llm.stream(text(6, 180), asking(60))
        next(stream)
        with pytest.raises(RequestError, match=r"needs 4 pages and 2 are not in use"):
            llm.load_prefix(file)
        assert len(stream.gather().token_ids) == 59
        assert llm.load_prefix(file) == 128


def test_without_a_cache_there_is_nothing_to_save(opened: Open, file: Path) -> None:
    with opened(prefix_cache=False) as llm:
        for call in (lambda: llm.load_prefix(file), lambda: llm.save_prefix(file.with_name("x"), TOKENS)):
            with pytest.raises(RequestError, match="prefix_cache is off"):
                call()
    assert not file.with_name("x").exists()


def test_nothing_cached_makes_a_file_of_the_note_alone(opened: Open, tmp_path: Path) -> None:
    with opened() as llm:
        assert llm.save_prefix(tmp_path / "x", [1, 2, 3], note="n") == 0
        assert llm.load_prefix(tmp_path / "x") == 0 and saved.note_of(tmp_path / "x") == "n"
        with pytest.raises(RequestError, match="cannot be written: No such file"):
            llm.save_prefix(tmp_path / "no" / "x", [1, 2, 3])


@pytest.mark.parametrize(("name", "settings"), [
    ("mistral", {}), ("qwen3_5_moe", {}), (None, {"dtype": "bfloat16"}), (None, {"activations": "quantized"})])
def test_another_model_or_setting_is_refused(opened: Open, file: Path, name: str | None,
                                             settings: dict[str, Any]) -> None:
    with (opened(name, **settings) if name else opened(**settings)) as llm:
        with pytest.raises(SessionError, match="another model, or with another dtype"):
            llm.load_prefix(file)
        assert at_rest(llm).pages_cached == 0
    assert saved.note_of(file) == "of mine"


def rewritten(file: Path, arrays: Callable[[dict[str, Any]], Any], **about: str) -> None:
    """The file with other arrays or metadata, its digests right again."""
    found = saved.read(file, saved.opened(file).metadata["model"])
    model = saved.opened(file).metadata["model"]
    content = {k: np.array(v) for k, v in {"tokens": np.asarray(found.tokens, np.int32), **found.arrays}.items()}
    arrays(content)
    tokens = content.pop("tokens")
    saved.write(file, saved.SavedPrefix(tuple(tokens.tolist()), content), model, "of mine")
    whole = file.read_bytes()
    for key, value in about.items():
        before = json.dumps({key: saved.opened(file).metadata[key]})[1:-1].encode()
        after = json.dumps({key: value})[1:-1].encode()
        assert len(before) == len(after)
        whole = whole.replace(before, after)
    file.write_bytes(whole)


@pytest.mark.parametrize(("change", "message"), [
    (lambda a: a.pop("kv.0"), r"kv\.0 is absent"),
    (lambda a: a.update(more=a["kv.0"]), "more is .* absent in this model"),
    (lambda a: a.update({"kv.0": a["kv.0"].astype(np.float16)}), r"kv\.0 is .* float16"),
    (lambda a: a.update({"kv.0": a["kv.0"][:, :1]}), r"kv\.0 is \[4, 1,"),
    (lambda a: a.update({"kv.0": a["kv.0"][:3]}), r"kv\.0 is \[3, 2,"),
    (lambda a: a.update(tokens=a["tokens"][:31]), "no tokens of whole pages"),
])
def test_arrays_of_another_shape_are_refused(opened: Open, file: Path, change: Any, message: str) -> None:
    rewritten(file, change)
    with opened() as llm:
        with pytest.raises(SessionError, match=message):
            llm.load_prefix(file)
        assert at_rest(llm).pages_cached == 0 and llm.generate(TOKENS, asking(1)).usage.cached_tokens == 0


def test_another_version_of_the_format_is_named(opened: Open, file: Path) -> None:
    rewritten(file, lambda a: None, version="9")
    with opened() as llm, pytest.raises(SessionError, match=r"version 9 of the format .* reads version 1"):
        llm.load_prefix(file)


def test_every_damage_is_found(opened: Open, file: Path) -> None:
    """Cut anywhere or with any byte changed: refused, or, where only words of the header changed, still right."""
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    draw = np.random.default_rng(1)
    with opened() as llm:
        for length in (0, 5, 8, 9, header - 1, header, header + 5, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(SessionError):
                llm.load_prefix(file)
        file.write_bytes(whole + b"x")
        with pytest.raises(SessionError):
            llm.load_prefix(file)
        for at in (*draw.integers(0, header, 150), *draw.integers(header, len(whole), 50)):
            spoiled = bytearray(whole)
            spoiled[at] ^= 1 << int(draw.integers(0, 8))
            file.write_bytes(spoiled)
            try:
                count = llm.load_prefix(file)
            except SessionError:
                continue
            assert count == 128 and at < header, "no digest covers the package's version, nor names that agree"
        assert llm.generate(TOKENS, asking(1)).usage.cached_tokens in (0, 128)


def test_fingerprints_tell_models_apart(tmp_path: Path) -> None:
    first = fingerprint(open_checkpoint(DATA / "llama"))
    copy = tmp_path / "llama"
    shutil.copytree(DATA / "llama", copy)
    assert fingerprint(open_checkpoint(copy)) == first != fingerprint(open_checkpoint(DATA / "mistral"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint(open_checkpoint(copy)) != first


class Talk:
    """A scripted chat with a real model."""

    def __init__(self, llm: LLM, start: Session | None = None) -> None:
        self.aside = io.StringIO()
        self.chat = chat.Chat(llm, start or Session(sampling={"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}),
                              Screen(io.StringIO(), self.aside))

    def say(self, *lines: str) -> str:
        """What was noted about these lines."""
        rest = iter(lines)

        def read(_: str) -> str:
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        before = len(self.aside.getvalue())
        self.chat.run(read)
        return self.aside.getvalue()[before:]


LONG = "tell me of the woods and of all that lives there, slowly, and then of the sea"


def test_a_chat_goes_on_from_its_file_without_reading_it_again(opened: Open, tmp_path: Path) -> None:
    path, plain = tmp_path / "a talk.session", tmp_path / "talk.json"
    with opened() as llm:
        talk = Talk(llm)
        assert "with the caches of" in talk.say("/system be kind", LONG, f"/save {path}", f"/save {plain}")
        talk.say("and then?")
        expected, first = talk.chat.session, talk.chat.usage
    with opened() as llm:
        talk = Talk(llm)
        assert "loaded" in talk.say(f"/load {path}")
        talk.say("and then?")
        assert talk.chat.session == expected
        usage = talk.chat.usage
        assert usage is not None and first is not None and usage.cached_tokens >= 64
        assert usage.cached_tokens == first.cached_tokens
        assert at_rest(llm).prompt_tokens == usage.prompt_tokens - usage.cached_tokens
        assert "cached_tokens = " in talk.say("/stats")
    assert session.load(plain) == session.load(path)


def test_a_file_of_another_model_leaves_the_chat_and_its_own_text_as_they_were(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "t.session"
    with opened() as llm:
        talk = Talk(llm)
        talk.say("hello", f"/save {path}")
        mine = talk.chat.session
    with opened("qwen3") as llm:
        talk = Talk(llm)
        talk.say("something else")
        before = talk.chat.session
        notes = talk.say(f"/load {path}")
        assert "another model" in notes and "/load-text t.session continues it" in notes
        assert talk.chat.session == before and talk.chat.failed
        talk.say(f"/load-text {path}")
        assert talk.chat.session == mine
    path.write_bytes(b"\0" * 40)
    with pytest.raises(RequestError, match="not a saved conversation"):
        session.load(path)
