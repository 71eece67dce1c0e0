"""Settings: the only reader of BWINFER_* variables and of bwinfer.toml; command-line flags come from these structs.

A setting is a field of a section's struct. Flags win over variables, variables over the file, the file over defaults.
One name serves everywhere: field `max_context` of [engine] is `--max-context`, BWINFER_MAX_CONTEXT and
`max_context = ...` under [engine]. Field names are unique over all sections.
"""
from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from blackwell_infer.errors import ConfigError
from blackwell_infer.types import Sampling

PREFIX = "BWINFER_"
FILE = "bwinfer.toml"
DEMO = "demo"
"""The model that the package brings: what this name means, and no name at all, wherever one may be left out."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is loaded and served. Every field is an `LLM` keyword, a flag, a bwinfer.toml key and a variable."""

    device: Annotated[str, Meta(
        pattern=r"^(auto|cuda(:\d+)?|numpy|emulated(:sm_\d+[af]?)?)$",
        description="auto, cuda, cuda:N, numpy, or emulated for tiny models; auto takes the first usable GPU",
    )] = "auto"
    dtype: Annotated[str, Meta(
        pattern="^(auto|float32|float16|bfloat16)$",
        description="auto, float32, float16 or bfloat16: the type of activations and of the KV cache",
    )] = "auto"
    activations: Annotated[Literal["full", "quantized"], Meta(
        description="full multiplies activations as they are; quantized rounds those that meet NVFP4, MXFP8 and FP8 "
                    "matrices to the same small codes (W4A4, W8A8): lossy, meant for long prompts on Blackwell",
    )] = "full"
    reproducible: Annotated[bool, Meta(
        description="the same bits for a request whatever runs beside it and however its prompt is cut, at every size; "
                    "prompts are read several times slower, and the NumPy backend has no such mode. Without it this "
                    "holds for steps of up to 16 tokens",
    )] = False
    max_context: Annotated[int, Meta(
        ge=0, description="longest prompt plus answer in tokens; 0 takes the model's own limit, or what fits",
    )] = 0
    max_batch: Annotated[int, Meta(ge=1, description="most requests that run at once")] = 32
    max_queue: Annotated[int, Meta(ge=0, description="most answers that wait for others to end; 0 is any number")] = 0
    max_step_tokens: Annotated[int, Meta(
        ge=0, description="most tokens of one step; longer prompts are prefilled in chunks. 0 takes 4096 on GPUs, and "
                          "256 on NumPy, which gains nothing from more: nobody waits long for a step to end",
    )] = 0
    kv_pages: Annotated[int, Meta(
        ge=0,
        description="pages of the KV cache, 32 tokens each; 0 takes what the context and the batch need, or what fits",
    )] = 0
    prefix_cache: Annotated[bool, Meta(
        description="keep the KV pages (and, of hybrids, some recurrent states) of what was read until the room is "
                    "needed: a prompt that begins like an earlier one is read from where they part",
    )] = True
    prefix_disk: Annotated[str, Meta(
        description="folder that keeps the prefix cache across restarts; empty is none. Processes may share it, and it "
                    "may be deleted at any time; it holds what prompts and answers were made into",
    )] = ""
    prefix_disk_bytes: Annotated[int, Meta(
        ge=1, description="most bytes of files there; what was of use least recently goes",
    )] = 16 << 30
    state_dtype: Annotated[Literal["float32", "float16", "bfloat16"], Meta(
        description="how the states of recurrent layers are stored; 16 bits take half the memory and bandwidth, and "
                    "round every state after every step: lossy",
    )] = "float32"
    graphs: Annotated[bool, Meta(
        description="run decode steps as CUDA graphs; off launches kernel by kernel, slower, for debugging",
    )] = True
    speculate: Annotated[Literal["auto", "off", "ngram", "mtp"], Meta(
        description="guess tokens and check several in one step, which changes no answer: mtp takes the model's own "
                    "head, ngram what followed the same words before; auto takes what there is, where it pays",
    )] = "auto"
    mtp_file: Annotated[str, Meta(
        description="safetensors or GGUF file with the head for mtp, where it is none of the model's own; empty takes "
                    "the model's, or the one in its folder that is named so (mtp.safetensors, mtp-NAME.gguf)",
    )] = ""
    draft_max: Annotated[int, Meta(
        ge=1, le=15, description="most tokens guessed per step; how many follows from how many hold and what they cost",
    )] = 8
    draft_min: Annotated[int, Meta(
        ge=0, le=15, description="fewest tokens guessed per step, where there is anything to guess",
    )] = 0
    revision: Annotated[str, Meta(description="branch, tag or commit of a hub model")] = "main"


class ChatConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a prompt becomes a conversation, and how the terminal shows it."""

    mode: Annotated[Literal["auto", "chat", "raw"], Meta(
        description="chat renders the model's chat template, raw continues the text as it stands; "
                    "auto takes chat, and `run` takes raw if the model has no template",
    )] = "auto"
    system: Annotated[str, Meta(description="system prompt of a new conversation")] = ""
    show_reasoning: Annotated[bool, Meta(description="show the model's reasoning")] = True


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the HTTP server listens and what it lets in."""

    host: Annotated[str, Meta(description="address to listen on; 0.0.0.0 is every network")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8080
    api_key: Annotated[tuple[str, ...], Meta(description="keys that clients must show; none lets everybody in")] = ()
    served_name: Annotated[str, Meta(description="the model's name in the API; empty takes the name it was given")] = ""
    cors_origin: Annotated[tuple[str, ...], Meta(
        description="pages of these origins may use the server from a browser")] = ()
    max_body: Annotated[int, Meta(ge=1, description="largest body of a request in bytes")] = 4 << 20
    max_choices: Annotated[int, Meta(ge=1, description="most answers to one request (n times prompts)")] = 16
    request_timeout: Annotated[float, Meta(gt=0, description="seconds after which an answer is broken off")] = 600.0
    drain_timeout: Annotated[float, Meta(ge=0, description="seconds that running answers get at the end")] = 30.0


SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "engine": EngineConfig, "sampling": Sampling, "chat": ChatConfig, "serve": ServeConfig,
}


class Setting(msgspec.Struct, frozen=True):
    """One field of one section: what flags, variables and file keys are generated from."""

    section: str
    name: str
    type: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def kind(self) -> msgspec.inspect.Type:
        """The type without its annotations, and without None where None is allowed."""
        return plain(msgspec.inspect.type_info(self.type))


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved settings. `sampling` holds only what was set: the rest is the model's own default."""

    engine: EngineConfig = EngineConfig()
    sampling: Mapping[str, Any] = {}
    chat: ChatConfig = ChatConfig()
    serve: ServeConfig = ServeConfig()
    file: Path | None = None


def plain(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Strip metadata and an optional None from a type description."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        kind = plain(next(t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)))
    return kind


def settings_of(section: str) -> tuple[Setting, ...]:
    """The settings of a section ("engine", "sampling", "chat", "serve"), in the order of their struct."""
    struct = SECTIONS[section]
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, msgspec.inspect.StructType)
    found = []
    for field, info in zip(msgspec.structs.fields(struct), described.fields, strict=True):
        extra = info.type.extra_json_schema if isinstance(info.type, msgspec.inspect.Metadata) else None
        default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        found.append(Setting(section, field.name, field.type, default, (extra or {}).get("description", "")))
    return tuple(found)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """"; did you mean NAME?" for the known name closest to `name`, or the known names. A common prefix says nothing."""
    known = {k.removeprefix(prefix): k for k in known}
    close = difflib.get_close_matches(name.removeprefix(prefix), known, n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]}?" if close else f"; known: {', '.join(sorted(known.values()))}"


def build(struct: type[msgspec.Struct], values: Mapping[str, Any], where: str) -> Any:
    """An instance of a section's struct from typed values. ConfigError names an unknown or ill-typed field."""
    return struct(**checked(struct, values, where))


def checked(struct: type[msgspec.Struct], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` converted to the types of the struct's fields; see `build`."""
    types = {f.name: f.type for f in msgspec.structs.fields(struct)}
    result = {}
    for name, value in values.items():
        if name not in types:
            raise ConfigError(f"{where}: unknown setting {name}{nearest(name, types)}")
        result[name] = convert(value, types[name], f"{where}: {name}")
    return result


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as a field of type `kind`. ConfigError says what was expected, what came, and what the field means."""
    try:
        found = msgspec.convert(value, kind, str_keys=True)
        for number in found.values() if isinstance(found, dict) else (found,):
            if isinstance(number, float) and not math.isfinite(number):
                raise msgspec.ValidationError("Expected a finite number")
        return found
    except msgspec.ValidationError as error:
        described = msgspec.inspect.type_info(kind)
        extra = described.extra_json_schema if isinstance(described, msgspec.inspect.Metadata) else None
        about = (extra or {}).get("description", "")
        raise ConfigError(f"{where} = {value!r}: {reason(error)}" + (f" ({about})" if about else "")) from None


def reason(error: msgspec.ValidationError) -> str:
    """The library's message without its markup and without the text of a pattern."""
    text = str(error).replace("`", "")
    return "not one of the accepted values" if "regex" in text else text[:1].lower() + text[1:]


def parse(setting: Setting, text: str, where: str) -> Any:
    """The value that a flag or a variable spells. ConfigError if it is none.

    Lists are comma separated (strings: one item) or a JSON array; mappings are KEY=VALUE,... or a JSON object;
    "none" unsets an optional value; booleans are true/false, yes/no, on/off, 1/0; a grammar is KIND, KIND:TEXT or
    KIND:@FILE.
    """
    return convert(spelled(setting, text), setting.type, where)


def spelled(setting: Setting, text: str) -> Any:
    """`text` as the plain value that `convert` then checks; an unreadable spelling stays text and fails there."""
    kind = setting.kind
    if setting.default is None and text.lower() == "none":
        return None
    if isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.DictType) and text[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    if isinstance(kind, msgspec.inspect.VarTupleType):
        strings = isinstance(plain(kind.item_type), msgspec.inspect.StrType)
        return [text] if strings else [number(part) for part in text.split(",") if part.strip()]
    if isinstance(kind, msgspec.inspect.DictType):
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {key.strip(): number(value) for key, _, value in pairs}
    if isinstance(kind, msgspec.inspect.BoolType):
        word = text.lower()
        return word in ("true", "yes", "on", "1") or (False if word in ("false", "no", "off", "0") else text)
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        return number(text)
    if isinstance(kind, msgspec.inspect.StructType):
        name, _, body = text.partition(":")
        return {"kind": name, "text": contents(body, setting.name)}
    return text


def contents(text: str, name: str) -> str:
    """The text itself, or what is in the file that "@FILE" names. ConfigError if it cannot be read."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {text[1:]} cannot be read: {error}") from None


def number(text: str) -> int | float | str:
    """An int if it is one, else a float, else the text itself."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def config_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's configuration folder of this program."""
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else home() / ".config") / "bwinfer"


def state_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's state folder of this program (history of typed lines)."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else home() / ".local" / "state") / "bwinfer"


def home() -> Path:
    """The user's home. Without one (in a container) it is a path below which nothing exists or can be made."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


def find_file(start: Path, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The bwinfer.toml of `start` or its nearest parent that has one, else the user's, else None.

    Folders that cannot be looked into are passed over.
    """
    for folder in (start, *start.parents, config_home(environ)):
        if os.path.isfile(folder / FILE):
            return folder / FILE
    return None


def working_folder() -> Path:
    """The working folder, or its root if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def read_file(path: Path) -> dict[str, dict[str, Any]]:
    """Sections of a bwinfer.toml, typed. ConfigError names the file, and the unknown section or key."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    result: dict[str, dict[str, Any]] = {}
    for section, values in raw.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown section [{section}]{nearest(section, SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} must be a section: [{section}]")
        result[section] = checked(SECTIONS[section], values, f"{path}: [{section}]")
    return result


def read_environment(environ: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """Sections set by BWINFER_* variables. ConfigError names an unknown variable and the nearest known one."""
    table = {s.variable: s for section in SECTIONS for s in settings_of(section)}
    result: dict[str, dict[str, Any]] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in table:
            raise ConfigError(f"unknown variable {variable}{nearest(variable, table, PREFIX)}")
        setting = table[variable]
        result.setdefault(setting.section, {})[setting.name] = parse(setting, text, variable)
    return result


def load(flags: Mapping[str, Mapping[str, Any]] | None = None, *, path: Path | None = None, start: Path | None = None,
         environ: Mapping[str, str] = os.environ) -> Settings:
    """Resolve all settings. `flags` holds typed values per section; `path` names a file to read instead of searching.

    ConfigError: an unknown section, key or variable, a value of the wrong type or out of range, an unreadable file.
    """
    path = path or find_file(start or working_folder(), environ)
    layers = [read_file(path) if path else {}, read_environment(environ), flags or {}]
    merged = {section: {k: v for layer in layers for k, v in layer.get(section, {}).items()} for section in SECTIONS}
    return Settings(engine=EngineConfig(**merged["engine"]), sampling=merged["sampling"],
                    chat=ChatConfig(**merged["chat"]), serve=ServeConfig(**merged["serve"]), file=path)
