"""Settings: one table of fields behind flags, variables and bwinfer.toml, and who wins."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer import config
from blackwell_infer.errors import ConfigError
from blackwell_infer.types import Grammar, Sampling

ALL = {s.name: s for section in config.SECTIONS for s in config.settings_of(section)}


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / config.FILE
    path.write_text(text, encoding="utf-8")
    return path


def test_names_are_unique_over_sections_and_every_field_says_what_it_is() -> None:
    assert len(ALL) == sum(len(config.settings_of(section)) for section in config.SECTIONS)
    assert [s.name for s in ALL.values() if not s.help] == []


def test_flags_beat_variables_beat_the_file_beats_defaults(tmp_path: Path) -> None:
    write(tmp_path, "[engine]\nmax_context = 100\nmax_batch = 3\nkv_pages = 7\n[sampling]\nseed = 1\n")
    environ = {"BWINFER_MAX_BATCH": "4", "BWINFER_KV_PAGES": "8", "PATH": "/bin"}
    got = config.load({"engine": {"kv_pages": 9}}, start=tmp_path, environ=environ)
    assert got.engine == config.EngineConfig(max_context=100, max_batch=4, kv_pages=9)
    assert got.sampling == {"seed": 1}
    assert got.file == tmp_path / config.FILE


def test_nothing_set_gives_the_defaults(tmp_path: Path) -> None:
    got = config.load(start=tmp_path, environ={"XDG_CONFIG_HOME": str(tmp_path / "none")})
    assert got == config.Settings()
    assert got.sampling == {}


def test_the_nearest_file_wins_and_the_users_file_is_last(tmp_path: Path) -> None:
    home = tmp_path / "home"
    user = write(home / "bwinfer", "[engine]\nmax_batch = 1\n")
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    environ = {"XDG_CONFIG_HOME": str(home)}
    assert config.find_file(work, environ) == user
    above = write(tmp_path / "a", "[engine]\nmax_batch = 2\n")
    assert config.find_file(work, environ) == above
    here = write(work, "[engine]\nmax_batch = 3\n")
    assert config.find_file(work, environ) == here
    assert config.load(path=user, start=work, environ=environ).engine.max_batch == 1


@pytest.mark.parametrize(("text", "message"), [
    ("[engin]\n", r"unknown section \[engin\]; did you mean engine\?"),
    ("max_batch = 3\n", r"unknown section \[max_batch\]"),
    ("engine = 3\n", r"engine must be a section"),
    ("[engine]\nmax_contxt = 3\n", r"\[engine\]: unknown setting max_contxt; did you mean max_context\?"),
    ("[engine]\nmax_batch = 0\n", r"max_batch = 0: expected int >= 1 \(most requests that run at once\)"),
    ("[engine]\nmax_batch = 'three'\n", r"expected int, got str"),
    ("[engine]\ndevice = 'gpu'\n", r"device = 'gpu': not one of the accepted values \(auto, cuda"),
    ("[sampling]\ntop_p = 1.5\n", r"expected float <= 1"),
    ("[engine\n", r"cannot be read"),
])
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(start=tmp_path, environ={})
    assert str(path) in str(caught.value)


def test_a_missing_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        config.load(path=tmp_path / "absent.toml", environ={})


def test_unknown_variables_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"BWINFER_MAX_CONTXT; did you mean BWINFER_MAX_CONTEXT\?"):
        config.read_environment({"BWINFER_MAX_CONTXT": "1"})
    with pytest.raises(ConfigError, match=r"BWINFER_QQQQQQQQ; known: BWINFER_ACTIVATIONS, BWINFER_API_KEY, "):
        config.read_environment({"BWINFER_QQQQQQQQ": "1"})


@pytest.mark.parametrize(("name", "text", "value"), [
    ("max_context", "4096", 4096), ("device", "cuda:1", "cuda:1"), ("temperature", "0", 0.0), ("seed", "none", None),
    ("seed", "7", 7), ("ignore_eos", "yes", True), ("ignore_eos", "0", False), ("stop", "a, b", ("a, b",)),
    ("stop", '["a", "b"]', ("a", "b")), ("stop_token_ids", "1,2", (1, 2)), ("stop_token_ids", "[1]", (1,)),
    ("logit_bias", "15=-100,3=0.5", {15: -100.0, 3: 0.5}), ("logit_bias", '{"3": 1}', {3: 1.0}), ("mode", "raw", "raw"),
    ("grammar", "json_object", Grammar("json_object")), ("grammar", "regex:a:b", Grammar("regex", "a:b")),
    ("grammar", "none", None),
])
def test_spellings(name: str, text: str, value: object) -> None:
    assert config.parse(ALL[name], text, name) == value


@pytest.mark.parametrize(("name", "text"), [
    ("max_context", "1.5"), ("max_context", "-1"), ("temperature", "nan"), ("frequency_penalty", "nan"),
    ("presence_penalty", "-inf"), ("logit_bias", "3=nan"), ("temperature", "warm"), ("mode", "talk"),
    ("ignore_eos", "perhaps"), ("stop_token_ids", "1,b"), ("stop_token_ids", "[1"), ("logit_bias", "3"),
    ("logit_bias", "x=1"), ("max_context", "none"), ("grammar", "xml:<a/>"), ("grammar", "lark:@no such file"),
])
def test_wrong_spellings_are_refused_with_the_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config.parse(ALL[name], text, name)


@given(st.sampled_from(sorted(ALL)), st.text(max_size=30))
def test_any_text_is_a_value_of_the_type_or_a_config_error(name: str, text: str) -> None:
    try:
        value = config.parse(ALL[name], text, name)
    except ConfigError:
        return
    assert config.convert(value, ALL[name].type, name) == value


def test_sampling_can_be_built_from_checked_values() -> None:
    built = config.build(Sampling, {"logit_bias": {"5": 1}, "stop": ["x"]}, "here")
    assert built == Sampling(logit_bias={5: 1.0}, stop=("x",))


def test_without_a_home_there_is_no_file_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    assert config.load(start=tmp_path, environ={}).file is None
    assert not config.state_home({}).exists()


def test_a_grammar_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "rules.lark").write_text("start: /a+/", encoding="utf-8")
    assert config.parse(ALL["grammar"], f"lark:@{tmp_path}/rules.lark", "here") == Grammar("lark", "start: /a+/")
    path = write(tmp_path, "[sampling]\ngrammar = { kind = 'json_object' }\n")
    assert config.load(path=path, environ={}).sampling == {"grammar": Grammar("json_object")}
