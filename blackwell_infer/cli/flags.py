"""Flags of the command line, generated from the settings structs, and the parser that reads them."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from blackwell_infer import config
from blackwell_infer.errors import ConfigError

NOTES = {"sampling": "What is not set is as the model's authors advise, else as given here."}


class UsageError(ConfigError):
    """The command line itself is wrong: exit status 2."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `UsageError` instead of printing and exiting; --help still exits with 0."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.HelpFormatter, **keywords)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of argv; flags and operands may be mixed. UsageError names an unknown flag and the nearest one."""
        found, rest = self.parse_known_intermixed_args(argv)
        for text in rest:
            if text.startswith("-") and text != "--":
                known = [option for option in self._option_string_actions if option.startswith("--")]
                raise UsageError(f"unknown option {text}{config.nearest(text.partition('=')[0], known, '--')}")
            raise UsageError(f"unexpected argument {text!r}; put a prompt of several words in quotes")
        return found


def add(parser: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    """Add one flag per setting of the sections ("engine"), or a single one of them ("engine.revision").

    An absent flag leaves no trace in the namespace.
    """
    for place in sections:
        section, _, only = place.partition(".")
        group = parser.add_argument_group(f"{section} settings", NOTES.get(section))
        for setting in config.settings_of(section):
            if only in ("", setting.name):
                add_setting(group, setting)


def add_setting(group: argparse._ArgumentGroup, setting: config.Setting) -> None:
    """One flag: on/off pairs for booleans, repeatable for lists and mappings; a grammar has a second, for schemas."""
    shared: dict[str, Any] = {"dest": f"{setting.section}.{setting.name}", "default": argparse.SUPPRESS,
                              "help": describe(setting)}
    kind = setting.kind
    if isinstance(kind, msgspec.inspect.BoolType):
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **shared)
        return
    many = isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.DictType)
    group.add_argument(setting.flag, type=reader(setting), metavar=metavar(kind),
                       action="append" if many else "store", **shared)
    if isinstance(kind, msgspec.inspect.StructType):
        shared["help"] = f"the same as {setting.flag} json_schema:SCHEMA"
        group.add_argument("--json-schema", type=reader(setting, "json_schema:"), metavar="SCHEMA|@FILE", **shared)


def describe(setting: config.Setting) -> str:
    """Help text with the default, percent signs doubled for argparse."""
    shown = shown_default(setting)
    return (setting.help + (f" (default: {shown})" if shown else "")).replace("%", "%%")


def shown_default(setting: config.Setting) -> str:
    """The default as a user would write it; nothing for an unset or empty one."""
    default = setting.default
    if default is None or default in ("", (), {}):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def metavar(kind: msgspec.inspect.Type) -> str:
    """The word that stands for a value in help texts."""
    if isinstance(kind, msgspec.inspect.LiteralType):
        return "{" + ",".join(str(v) for v in kind.values) + "}"
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return metavar(config.plain(kind.item_type))
    if isinstance(kind, msgspec.inspect.DictType):
        return "ID=BIAS"
    if isinstance(kind, msgspec.inspect.StructType):
        return "KIND[:TEXT|:@FILE]"
    names = {msgspec.inspect.IntType: "N", msgspec.inspect.FloatType: "X", msgspec.inspect.StrType: "TEXT"}
    return names[type(kind)]


def reader(setting: config.Setting, prefix: str = "") -> Callable[[str], Any]:
    """The function by which argparse turns a flag's text, behind `prefix`, into a typed value."""

    def read(text: str) -> Any:
        try:
            return config.parse(setting, prefix + text, setting.flag)
        except ConfigError as error:
            raise UsageError(str(error)) from None

    return read


def collect(found: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Values of the given flags per section, as `config.load` takes them."""
    result: dict[str, dict[str, Any]] = {}
    for dest, value in vars(found).items():
        section, dot, name = dest.partition(".")
        if dot:
            result.setdefault(section, {})[name] = joined(value)
    return result


def joined(value: Any) -> Any:
    """The values of a repeated flag as one: tuples side by side, mappings merged."""
    if not isinstance(value, list):
        return value
    if isinstance(value[0], Mapping):
        return {k: v for part in value for k, v in part.items()}
    return tuple(item for part in value for item in part)
