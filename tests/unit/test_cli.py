"""The command line around a model that is not there: a stand-in with the interface of `LLM` answers from a list."""
from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blackwell_infer.cli import chat, prompt, run, session
from blackwell_infer.cli.main import main
from blackwell_infer.cli.progress import amount
from blackwell_infer.cli.screen import Screen
from blackwell_infer.cli.session import Session
from blackwell_infer.errors import CheckpointError, ConfigError, RequestError
from blackwell_infer.types import Event, Message, Sampling, Usage

USAGE = Usage(prompt_tokens=5, completion_tokens=3, prefill_seconds=0.5, decode_seconds=1.0)


class Info(msgspec.Struct):
    device: str = "numpy"
    max_context: int = 64


class Stats(msgspec.Struct):
    requests: int = 0


class FakeLLM:
    """Answers every request with the next script: pieces of text, or an exception to raise in their place."""

    default_sampling = Sampling(temperature=0.5)

    def __init__(self, *scripts: list[Any], template: str | None = "template") -> None:
        self.scripts = list(scripts)
        self.template = template
        self.asked: list[tuple[Any, Any, Sampling]] = []
        self.model = ""
        self.settings: dict[str, Any] = {}
        self.cancelled: list[int] = []

    def __call__(self, model: str, **settings: Any) -> FakeLLM:
        self.model, self.settings = model, settings
        return self

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.settings["closed"] = True

    def info(self) -> Info:
        return Info()

    def stats(self) -> Stats:
        return Stats(len(self.asked))

    def stream(self, text: Any = None, sampling: Sampling | None = None, *, messages: Any = None) -> Iterator[Event]:
        assert sampling is not None
        self.asked.append((text, messages, sampling))
        script = self.scripts.pop(0)
        if script and isinstance(script[0], RequestError):
            raise script[0]
        return FakeStream(script)

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)


class FakeStream(Iterator[Event]):
    """Plays a script: pieces of text, events, exceptions; goes on after an exception, as a real stream does."""

    request_id = 1

    def __init__(self, script: list[Any]) -> None:
        self.script = iter([*script, Event(request_id=1, finish_reason="stop", usage=USAGE)])
        self.number = 0

    def __next__(self) -> Event:
        piece = next(self.script)
        if isinstance(piece, BaseException):
            raise piece
        if isinstance(piece, Event):
            return piece
        self.number += 1
        return Event(request_id=1, text=piece, token_ids=(self.number - 1,))

    def close(self) -> None:
        self.script = iter(())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def talk(llm: FakeLLM, text: str, start: Session | None = None) -> tuple[chat.Chat, str, str]:
    """Run a scripted conversation; returns the chat, what was answered, and what was noted."""
    out, aside = io.StringIO(), io.StringIO()
    talking = chat.Chat(llm, start or Session(), Screen(out, aside))  # type: ignore[arg-type]
    lines = iter(text.splitlines())

    def read(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    status = talking.run(read)
    return talking, out.getvalue(), aside.getvalue() + f"status {status}"


def test_a_conversation_carries_its_turns() -> None:
    llm = FakeLLM(["Hel", "lo"], ["Bye"])
    talking, out, _ = talk(llm, "hi\nleave", Session(system="be short"))
    assert out == "Hello\nBye\n"
    assert [(m.role, m.content) for m in llm.asked[1][1]] == [
        ("system", "be short"), ("user", "hi"), ("assistant", "Hello"), ("user", "leave")]
    assert talking.status() == "2.0 tok/s   context 8 of 64 tokens (12 %)"


def test_ctrl_c_keeps_what_came_and_the_conversation_goes_on() -> None:
    end = Event(request_id=1, text="o", finish_reason="cancelled", usage=USAGE)
    llm = FakeLLM(["One ", "tw", KeyboardInterrupt(), end], ["three"])
    talking, out, notes = talk(llm, "count\nmore")
    assert out == "One two\nthree\n"
    assert talking.session.messages[1].content == "One two"  # with what the engine had held back
    assert llm.cancelled == [1]
    again = KeyboardInterrupt()
    impatient = FakeLLM(["One ", again, again, "two"], [again, "x"], ["three"])
    talking, out, notes = talk(impatient, "count\nand\nmore")
    assert out == "One \nthree\n"
    assert notes.count("[stopped]") == 2
    assert [m.content for m in talking.session.messages] == ["count", "One ", "more", "three"]


def test_ctrl_c_before_an_answer_begins_keeps_the_session() -> None:
    llm = FakeLLM(["fine"])
    stream = llm.stream

    def interrupted(*args: Any, **keywords: Any) -> Iterator[Event]:
        llm.stream = stream  # type: ignore[method-assign]
        raise KeyboardInterrupt

    llm.stream = interrupted  # type: ignore[method-assign,assignment]
    talking, out, notes = talk(llm, "a long text\nshort")
    assert (out, notes) == ("fine\n", "[stopped]\nstatus 0")
    assert [m.content for m in talking.session.messages] == ["short", "fine"]


def test_two_interrupts_at_the_prompt_leave_but_one_does_not() -> None:
    assert talk(FakeLLM(["x"]), "^C\nhi\n^C")[2].endswith("status 0")
    assert talk(FakeLLM(), "^C\n^C\nnever")[2].endswith("status 130")


def test_a_refused_request_leaves_the_session_as_it_was() -> None:
    llm = FakeLLM([RequestError("70 tokens do not fit 64")], ["fine"])
    talking, out, notes = talk(llm, "long\nshort")
    assert "bwinfer: 70 tokens do not fit 64" in notes
    assert out == "fine\n"
    assert [m.content for m in talking.session.messages] == ["short", "fine"]


def test_an_error_in_the_middle_keeps_what_was_generated() -> None:
    llm = FakeLLM(["half ", Event(request_id=1, finish_reason="error", error="no usable distribution")])
    talking, out, notes = talk(llm, "go")
    assert out == "half \n"
    assert "bwinfer: no usable distribution" in notes
    assert talking.session.messages[-1].content == "half "


def test_raw_mode_continues_the_text() -> None:
    llm = FakeLLM([" b"], [" d"], [" e"], template=None)
    talking, _, notes = talk(llm, "a\n c\n\n/system x", Session(mode="raw"))
    assert [asked[0] for asked in llm.asked] == ["a", "a b c", "a b c d"]
    assert talking.session.text == "a b c d e"
    assert "raw mode has no system prompt" in notes


def test_commands_change_settings_and_show_them() -> None:
    llm = FakeLLM(["ok"], ["ok"])
    talking, _, notes = talk(llm, "/set top-k 4\n/set stop ##\n/set tempo 1\n/set seed x\nhi\n/system sir\n/reset\n"
                                  "again\n/stats\n/help\n/sav x\n/load\n/set")
    assert llm.asked[0][2] == Sampling(temperature=0.5, top_k=4, stop=("##",))
    assert [m.content for m in llm.asked[1][1]] == ["sir", "again"]
    for part in ("top_k = 4", "unknown setting tempo; did you mean", "seed = 'x': expected int", "system prompt: sir",
                 "requests = 2", "/save FILE", "unknown command /sav; did you mean save?", "/load needs a file name",
                 "min_p = 0.0"):
        assert part in notes, part
    assert len(talking.session.messages) == 2


def test_save_and_load_give_the_conversation_back(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talking, _, _ = talk(FakeLLM(["ok"]), f"/set logit_bias 3=-1\n/system s\nhi\n/save {path}")
    assert session.load(path) == talking.session
    again, _, notes = talk(FakeLLM(["more"]), f"/load {path}\ngo")
    assert "2 messages" in notes
    assert again.session.messages[:2] == talking.session.messages
    assert again.session.sampling == {"logit_bias": {3: -1.0}}
    assert list(tmp_path.iterdir()) == [path]


def test_flags_win_over_a_loaded_conversation(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    Session(system="old", sampling={"top_k": 3, "temperature": 0.1}).save(path)
    llm = FakeLLM(["fine"])
    assert call(["chat", "m", "--load", str(path), "--temperature", "0.9", "--system", "new"], llm, "hi\n")[0] == 0
    assert llm.asked[0][2] == Sampling(top_k=3, temperature=0.9)
    assert llm.asked[0][1][0] == Message(role="system", content="new")
    status, _, err = call(["chat", "m", "--load", str(path), "--raw"], FakeLLM())
    assert status == 1 and "chat mode, not in raw mode" in err


@pytest.mark.parametrize("text", ["", "[]", '{"mode": "other"}', '{"messages": 3}', '{"unknown": 1}', "\x00"])
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"bad\.json: not a saved conversation"):
        session.load(path)


def test_a_saved_setting_out_of_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"sampling": {"top_p": 7}}')
    with pytest.raises(ConfigError, match="top_p = 7"):
        session.load(path)


def test_saving_where_one_cannot_says_so(tmp_path: Path) -> None:
    _, _, notes = talk(FakeLLM(), f"/save {tmp_path}/none/x.json")
    assert "cannot be written: No such file or directory" in notes


def test_entries_of_several_lines() -> None:
    lines = iter(['a\\', "b", '"""', "one", "", 'two"""', '"""x"""', '"""open', "end"])

    def read(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    assert [prompt.entry(read) for _ in range(4)] == ["a\nb", "one\n\ntwo", "x", "open\nend"]


def test_reasoning_is_dimmed_on_a_terminal_and_apart_elsewhere() -> None:
    llm = FakeLLM([Event(request_id=1, reasoning="hm"), "yes"])
    _, out, notes = talk(llm, "hi")
    assert out == "yes\n"
    assert notes.startswith("hm\n\n")
    shown = Terminal()
    screen = Screen(shown, Terminal())
    screen.thought("h\x1b[2Jm")
    screen.answer("y\x07es\tö\n")
    screen.end()
    assert shown.getvalue() == "\x1b[2mh[2Jm\x1b[0m\n\nyes\tö\n"
    hidden = io.StringIO()
    Screen(hidden, hidden, reasoning=False).thought("secret")
    assert hidden.getvalue() == ""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs a command line in an empty folder with a stand-in model; returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def one(words: list[str], llm: FakeLLM, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("blackwell_infer.LLM", llm, raising=False)
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        status = main(words)
        out, err = capsys.readouterr()
        return status, out, err

    return one


def test_run_answers_on_stdout_and_times_on_stderr(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BWINFER_TOP_K", "3")
    llm = FakeLLM(["a", "b"])
    status, out, err = call(["run", "m", "--max-tokens", "4", "say", "--kv-pages", "9"], llm, "more\n")
    assert (status, out) == (0, "ab\n")
    assert "prompt 5 tokens, 10.0 tok/s; answer 3 tokens, 2.0 tok/s; stop" in err
    assert llm.asked[0][1] == [Message(role="user", content="say\nmore")]
    assert llm.asked[0][2] == Sampling(temperature=0.5, max_tokens=4, top_k=3)
    assert llm.settings["kv_pages"] == 9
    assert llm.settings["closed"]


def test_run_as_json(call: Any) -> None:
    script = [Event(request_id=1, text="x", token_ids=(7,), finish_reason="length"),
              Event(request_id=1, index=1, text="y", token_ids=(8,), finish_reason="stop")]
    status, out, err = call(["run", "m", "hi", "--json", "--n", "2", "--stop", "a", "--stop", "b"], FakeLLM(script))
    got = json.loads(out)
    assert (status, err) == (0, "")
    assert (got["text"], got["token_ids"], got["finish_reason"]) == ("x", [7], "stop")
    assert got["choices"][1] == {"text": "y", "token_ids": [8], "finish_reason": "stop"}
    assert got["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
                            "cached_tokens": 0}
    assert got["timings"]["decode_seconds"] == 1.0


def test_run_takes_raw_without_a_template_and_refuses_chat(call: Any) -> None:
    llm = FakeLLM(["b"], template=None)
    assert call(["run", "m", "a"], llm)[0] == 0
    assert llm.asked[0][0] == "a"
    assert call(["run", "m", "a", "--chat"], FakeLLM(template=None))[0] == 1
    raw = FakeLLM(["b"])
    assert call(["run", "m", "a", "--raw"], raw)[0] == 0
    assert raw.asked[0][0] == "a"


def test_an_interrupted_run_keeps_the_text_and_says_130(call: Any) -> None:
    status, out, _ = call(["run", "m", "hi"], FakeLLM(["a", KeyboardInterrupt()]))
    assert (status, out) == (130, "a\n")


def test_a_run_that_breaks_off_prints_what_came_and_fails(call: Any) -> None:
    script = ["a", Event(request_id=1, finish_reason="error", error="broken")]
    status, out, err = call(["run", "m", "hi"], FakeLLM(script))
    assert (status, out) == (1, "a\n")
    assert err.endswith("bwinfer: broken\n")


def test_a_scripted_conversation_that_failed_somewhere_says_so(call: Any) -> None:
    status, out, err = call(["chat", "m"], FakeLLM([RequestError("too\nlong")], ["fine"]), "a\nb\n")
    assert (status, out, err) == (1, "fine\n", "bwinfer: too long\n")
    assert call(["chat", "m"], FakeLLM(["fine"]), "b\n")[0] == 0


def test_settings_that_cannot_be_followed_are_reported(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    call(["run", "m", "x", "--system", "be brief"], FakeLLM(["a"], template=None))
    call(["chat", "m", "--raw", "--system", "be brief"], FakeLLM(["a"]), "x\n")
    call(["chat", "m", "--n", "3"], FakeLLM(["a"]), "/set n 2\nx\n")
    assert [r.message for r in caplog.records] == [chat.UNUSED_SYSTEM] * 2 + [chat.SINGLE] * 2


@pytest.mark.parametrize(("words", "stdin", "model", "text"), [
    (["run", "m", "x"], "", "m", "x"),
    (["run", "m"], "from a pipe", "m", "from a pipe"),
    (["run", "two words"], "", "demo", "two words"),
    (["run", "two words"], "below", "demo", "two words\nbelow"),
    (["run"], "from a pipe", "demo", "from a pipe"),
    (["run", "demo", "x"], "", "demo", "x"),
    (["chat"], "hi\n", "demo", "hi"),
    (["chat", "m"], "hi\n", "m", "hi"),
    (["run", "a file"], "x", "a file", "x"),
])
def test_without_a_model_it_is_the_demo_model(call: Any, words: list[str], stdin: str, model: str, text: str,
                                              tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    llm = FakeLLM(["!"])
    status, out, _ = call(words, llm, stdin)
    assert (status, out, llm.model) == (0, "!\n", model)
    assert [m.content for m in llm.asked[0][1]] == [text]


def test_chat_without_a_template_offers_raw(call: Any) -> None:
    status, _, err = call(["chat", "m"], FakeLLM(template=None), "hi\n")
    assert status == 1
    assert "no chat template; with --raw" in err
    status, out, _ = call(["chat", "m", "--raw"], FakeLLM(["!"], template=None), "hi\n/quit\nhi\n")
    assert (status, out) == (0, "!\n")


@pytest.mark.parametrize(("words", "status", "message"), [
    ([], 2, ""),
    (["--help"], 0, ""),
    (["--version"], 0, ""),
    (["rum"], 2, "unknown command rum; did you mean run?"),
    (["run", "m", "x", "--max-contxt", "3"], 2, "unknown option --max-contxt; did you mean --max-context?"),
    (["run", "m", "x", "y"], 2, "unexpected argument 'y'"),
    (["run", "m", "x", "--top-k", "many"], 2, "--top-k = 'many': expected int"),
    (["run", "m", "x", "--max-batch", "0"], 2, "expected int >= 1"),
    (["run", "m"], 2, "no prompt"),
    (["run"], 2, "model"),
    (["run", "m", "x", "--config", "absent.toml"], 1, "absent.toml"),
])
def test_wrong_usage_is_one_line(call: Any, words: list[str], status: int, message: str) -> None:
    got, _, err = call(words, FakeLLM())
    assert got == status
    assert message in err
    assert err.count("\n") == (1 if message else 0)


def test_unknown_variables_and_keys_are_errors(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BWINFER_DEVCE", "cuda")
    assert call(["run", "m", "x"], FakeLLM())[::2] == (
        1, "bwinfer: unknown variable BWINFER_DEVCE; did you mean BWINFER_DEVICE?\n")
    monkeypatch.delenv("BWINFER_DEVCE")
    Path("bwinfer.toml").write_text("[engine]\ndevce = 'cuda'\n")
    assert "unknown setting devce; did you mean device?" in call(["run", "m", "x"], FakeLLM())[2]


def test_typed_errors_are_one_line_and_a_traceback_only_on_demand(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CheckpointError("m: truncated\nat byte 7")

    monkeypatch.setattr(FakeLLM, "__call__", fail)
    assert call(["run", "m", "x"], FakeLLM())[::2] == (1, "bwinfer: m: truncated at byte 7\n")
    with pytest.raises(CheckpointError):
        call(["run", "m", "x", "--debug"], FakeLLM())


def test_help_of_every_command_lists_its_settings(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("chat", "run"):
        with pytest.raises(SystemExit) as left:
            call([name, "--help"], FakeLLM())
        assert left.value.code == 0
        shown = capsys.readouterr().out
        assert "--max-context" in shown
        assert "--temperature" in shown
        assert "bwinfer.toml" in shown
    with pytest.raises(SystemExit):
        call(["tokenize", "--help"], FakeLLM())
    shown = capsys.readouterr().out
    assert "--revision" in shown and "--max-context" not in shown  # a flag that nothing reads is no flag


def test_amounts() -> None:
    assert amount(512, 0, "bytes") == "512 B"
    assert amount(3 * 2**20, 2**31, "bytes") == "3.0 MiB of 2.0 GiB"
    assert amount(3, 9, "kernels") == "3 of 9 kernels"
    assert run.timings(run.Result(), 1.0) == "load 1.00 s"
