"""The `bwinfer` command in processes of its own, on the small trained model, on the NumPy backend."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT.parent / "shared" / "data" / "models" / "stories260K"
MODEL = FOLDER / "stories260K.gguf"
NUMPY = ["--device", "numpy"]
GREEDY = [*NUMPY, "--temperature", "0"]

pytestmark = [pytest.mark.e2e,
              pytest.mark.skipif(not MODEL.is_file(), reason="the small trained model is not beside the project")]


@pytest.fixture
def command(tmp_path: Path) -> dict[str, Any]:
    """Arguments of subprocess calls: an environment without settings, in an empty folder."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BWINFER_")}
    environ |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "c"), "XDG_STATE_HOME": str(tmp_path / "s"),
                "XDG_CACHE_HOME": str(tmp_path / "k")}
    return {"env": environ, "cwd": tmp_path, "text": True}


def bwinfer(command: dict[str, Any], *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    call = {**command, "env": command["env"] | more}
    return subprocess.run([sys.executable, "-m", "blackwell_infer.cli.main", *words], input=stdin,
                          capture_output=True, timeout=120, check=False, **call)


def test_run_gives_the_golden_tokens_as_json(command: dict[str, Any]) -> None:
    golden = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))["greedy"][0]
    done = bwinfer(command, "run", str(MODEL), golden["prompt"], "--json", "--max-tokens", "16", *GREEDY)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["token_ids"] == golden["generated_ids"][:16]
    assert got["usage"]["prompt_tokens"] == len(golden["prompt_ids"])
    assert got["usage"]["completion_tokens"] == 16
    assert got["finish_reason"] == "length"
    assert got["timings"]["decode_seconds"] > 0


def test_run_prints_the_text_and_appends_standard_input(command: dict[str, Any]) -> None:
    done = bwinfer(command, "run", str(MODEL), *GREEDY, "--max-tokens", "16", stdin="Once upon a time\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(", there was a little girl named Lily.")
    assert "tok/s" in done.stderr


def test_a_variable_and_a_file_work_like_the_flag(command: dict[str, Any]) -> None:
    (command["cwd"] / "bwinfer.toml").write_text('[engine]\ndevice = "numpy"\n[sampling]\ntemperature = 0\n')
    done = bwinfer(command, "run", str(MODEL), "Once", "--json", BWINFER_MAX_TOKENS="3")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 3


def test_a_reader_that_leaves_early_is_no_error(command: dict[str, Any]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "blackwell_infer.cli.main", "run", str(MODEL), "Once", *GREEDY, "--max-tokens", "400"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **command)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, errors
    assert "Traceback" not in errors


def test_closed_and_full_streams_are_one_line_at_most(command: dict[str, Any]) -> None:
    name, options = str(MODEL), " ".join([*GREEDY, "--max-tokens", "3"])
    cases = [("run {} Once {} <&-", 0), ("chat {} --raw {} <&-", 0), ("tokenize {} <&-", 0),
             ("run {} Once {} >&-", 0), ("run {} Once {} 2>&-", 0), ("run {} Once {} >/dev/full", 1),
             ("tokenize {} Once >/dev/full", 1), ("info {} >/dev/full", 1)]
    for line, status in cases:
        words = line.format(name, options) if line.count("{}") == 2 else line.format(name)
        done = subprocess.run(["bash", "-c", f'"{sys.executable}" -m blackwell_infer.cli.main {words}'],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, **command)
        assert done.returncode == status, (line, done.stderr)
        assert len(done.stderr.splitlines()) <= 1, (line, done.stderr)
        assert not status or "No space left" in done.stderr


def test_text_that_is_no_utf8_or_that_the_terminal_cannot_show(command: dict[str, Any]) -> None:
    strict = {**command, "text": False, "env": command["env"] | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8:strict"}}
    for words in (["run", str(MODEL), *GREEDY], ["tokenize", str(MODEL)], ["chat", str(MODEL), "--raw", *GREEDY]):
        done = subprocess.run([sys.executable, "-m", "blackwell_infer.cli.main", *words], input=b"a\xff\xfeb\n",
                              capture_output=True, timeout=60, check=False, **strict)
        assert done.returncode == 1, words
        assert done.stderr.decode().splitlines() == [
            "bwinfer: the text is not valid Unicode (lone surrogate at character 1)"], words
    done = bwinfer(command, "tokenize", str(MODEL), "\u00e9", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "\\xe9" in done.stdout


def test_a_user_without_a_home_and_a_folder_that_is_gone(command: dict[str, Any], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'rmdir "{gone}"; "{sys.executable}" -P -m blackwell_infer.cli.main tokenize "{MODEL}" Once'
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60, check=False,
                          **command | {"cwd": gone})
    assert done.returncode == 0 and "Once" in done.stdout, done.stderr


def test_chat_remembers_saves_and_goes_on(command: dict[str, Any]) -> None:
    lines = "/set max_tokens 8\nOnce upon a time\n\n/save talk.json\n/stats\n/quit\nnever\n"
    done = bwinfer(command, "chat", str(MODEL), "--raw", *GREEDY, stdin=lines)
    assert done.returncode == 0, done.stderr
    saved = json.loads((command["cwd"] / "talk.json").read_text())
    assert saved["text"].startswith("Once upon a time, there was a little girl")
    assert "tok/s" in done.stderr
    again = bwinfer(command, "chat", str(MODEL), "--load", "talk.json", *NUMPY, stdin="\n")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip()


def test_chat_saves_what_the_caches_hold_and_goes_on_from_there(command: dict[str, Any]) -> None:
    lines = "/set max_tokens 40\nOnce upon a time\n/save talk.session\n\n"
    done = bwinfer(command, "chat", str(MODEL), "--raw", *GREEDY, stdin=lines)
    assert done.returncode == 0, done.stderr
    again = bwinfer(command, "chat", str(MODEL), "--load", "talk.session", *NUMPY, stdin="\n/stats\n")
    assert again.returncode == 0, again.stderr
    assert done.stdout.endswith(again.stdout) and again.stdout.strip()
    assert "\ncached_tokens = 32\n" in again.stderr
    file = command["cwd"] / "talk.session"
    spoiled = bytearray(file.read_bytes())
    spoiled[-9] ^= 1
    file.write_bytes(spoiled)
    refused = bwinfer(command, "chat", str(MODEL), "--load", "talk.session", *NUMPY, stdin="\n")
    assert refused.returncode == 1 and "does not match its digest" in refused.stderr
    assert "--load-text talk.session continues it" in refused.stderr and refused.stderr.count("\n") == 1
    text = bwinfer(command, "chat", str(MODEL), "--load-text", "talk.session", *NUMPY, stdin="\n")
    assert text.returncode == 0 and text.stdout == again.stdout, text.stderr


def test_chat_survives_a_text_that_is_too_long(command: dict[str, Any]) -> None:
    lines = "word " * 400 + "\nOnce\n"
    done = bwinfer(command, "chat", str(MODEL), "--raw", *GREEDY, "--max-context", "64", "--max-tokens", "4",
                   stdin=lines)
    assert done.returncode == 1, done.stderr
    assert "bwinfer: " in done.stderr
    assert "64" in done.stderr
    assert done.stdout.strip()


def test_chat_says_that_the_model_has_no_template(command: dict[str, Any]) -> None:
    done = bwinfer(command, "chat", str(MODEL), *NUMPY, stdin="hi\n")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--raw" in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches child processes, also where whoever started the tests (a shell, in the background) ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_the_answer_and_keeps_the_conversation(command: dict[str, Any]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "blackwell_infer.cli.main", "chat", "demo", "--raw", *NUMPY, "--ignore-eos"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **command)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Once upon a time\n")
    process.stdin.flush()
    assert process.stdout.read(8)  # the answer has begun
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    out, errors = process.communicate("/save kept.json\n/quit\n", timeout=60)
    assert process.returncode == 0, errors
    assert "[stopped]" in errors, (len(out), out[-300:], errors)
    assert json.loads((command["cwd"] / "kept.json").read_text())["text"].startswith("Once upon a time")
    assert "Traceback" not in errors + out


def test_tokenize_there_and_back(command: dict[str, Any]) -> None:
    there = bwinfer(command, "tokenize", str(MODEL), "Once upon a time", "--json")
    assert there.returncode == 0, there.stderr
    ids = json.loads(there.stdout)["ids"]
    back = bwinfer(command, "tokenize", str(MODEL), "--ids", ",".join(map(str, ids)))
    assert back.stdout == "Once upon a time\n"
    shown = bwinfer(command, "tokenize", str(MODEL), stdin="Once\n")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [str(i) for i in json.loads(
        bwinfer(command, "tokenize", str(MODEL), "Once", "--json").stdout)["ids"]]


def test_info_names_the_family_and_says_whether_it_fits(command: dict[str, Any]) -> None:
    done = bwinfer(command, "info", str(MODEL), "--json")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["model"]["family"] == "llama"
    assert got["model"]["stored"] == {"f32": 4 * got["model"]["parameters"]}
    assert got["fit"]["numpy"]["fits"]
    text = bwinfer(command, "info", str(MODEL)).stdout
    assert "292,800 parameters" in text


@pytest.mark.parametrize("name", ["run", "info", "tokenize"])
def test_bad_models_are_one_line(command: dict[str, Any], name: str) -> None:
    cut = command["cwd"] / "cut.gguf"
    cut.write_bytes(MODEL.read_bytes()[:5000])
    for model in (str(cut), "absent.gguf"):
        done = bwinfer(command, name, model, *([] if name == "info" else ["x"]))
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("bwinfer: ")
        assert done.stderr.count("\n") == 1


def test_a_chat_template_beside_the_weights_is_used(command: dict[str, Any]) -> None:
    model = command["cwd"] / "model.gguf"
    model.symlink_to(MODEL)
    (command["cwd"] / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if messages | length > 3 %}"
        "{{ raise_exception('too many turns') }}{% endif %}")
    once = bwinfer(command, "run", str(model), "Once upon a time", *GREEDY, "--max-tokens", "8", "--json")
    assert once.returncode == 0, once.stderr
    assert json.loads(once.stdout)["text"]
    lines = "Once upon\n/save talk.json\nThen\nMore\n"
    done = bwinfer(command, "chat", str(model), *GREEDY, "--max-tokens", "4", "--system", "A story.", stdin=lines)
    assert done.returncode == 1, done.stderr
    saved = json.loads((command["cwd"] / "talk.json").read_text())
    assert saved["system"] == "A story."
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"]
    assert "too many turns" in done.stderr
