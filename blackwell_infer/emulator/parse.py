"""PTX text to plain data: kernels with their registers, variables and instructions.

Grammar: PTX ISA, sections 4 (syntax), 5 (state spaces), 9 (instruction set). Only what NVRTC and our `.ptx` use.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from blackwell_infer.errors import BlackwellInferError

WIDTHS = {"pred": 0, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "b32": 32, "u32": 32,
          "s32": 32, "f32": 32, "f16x2": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64}


class PtxError(BlackwellInferError):
    """PTX that is malformed, uses a form the emulator does not know, or breaks a rule while it runs."""


class Operand(msgspec.Struct, frozen=True):
    """`kind` reg: name; imm: value (an integer, or the bits of a float of `bits`); sym: name; vec and pair: items;
    addr: items[0] is a reg, sym or imm, `value` the byte offset; `negated` marks a predicate read as its complement."""

    kind: Literal["reg", "imm", "sym", "vec", "pair", "addr", "sink"]
    name: str = ""
    value: int = 0
    bits: int = 0
    items: tuple[Operand, ...] = ()
    negated: bool = False


class Instruction(msgspec.Struct, frozen=True):
    """One instruction. `guard` is the predicate register or "", `line` the 1-based line of the PTX text, `source` the
    file and line it was compiled from, "" if the text does not say."""

    line: int
    op: str
    operands: tuple[Operand, ...]
    guard: str = ""
    negated: bool = False
    text: str = ""
    source: str = ""


class Variable(msgspec.Struct, frozen=True):
    """A `.shared`, `.local`, `.const` or `.global` array; `size` 0 marks the dynamic shared array."""

    name: str
    space: str
    align: int
    size: int
    data: bytes = b""


class Entry(msgspec.Struct, frozen=True):
    """A kernel. `params` are (name, type width in bytes); `registers` map names to width in bits (0: predicate)."""

    name: str
    params: tuple[tuple[str, int], ...]
    registers: dict[str, int]
    variables: tuple[Variable, ...]
    code: tuple[Instruction, ...]
    labels: dict[str, int]


class Module(msgspec.Struct, frozen=True):
    """A PTX text. `variables` are those outside any kernel."""

    target: str
    entries: dict[str, Entry]
    variables: tuple[Variable, ...]


ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*((?:\.\w+\s+[\d,\s]+)*)\{", re.DOTALL)
PARAM = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s*(?:\.(?:global|shared|const|local)\s*)?"
                   r"(?:\.align\s+\d+\s*)?)?([\w$]+)"
                   r"(?:\[(\d+)\])?")
VARIABLE = re.compile(r"(?:\.visible\s+|\.extern\s+|\.weak\s+)*\.(shared|local|const|global)\s+(?:\.align\s+(\d+)\s+)?"
                      r"\.(\w+)\s+([\w$]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?", re.DOTALL)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
NUMBER = re.compile(r"^-?(0[xX][0-9a-fA-F]+|\d+)U?$")


def parse_module(text: str) -> Module:
    """Parse a whole PTX text; PtxError names the line of what it does not understand."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)
    files = {m[1]: m[2] for m in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)}
    text = re.sub(r"^\s*\.(file|section)\b[^\n]*", "", text, flags=re.MULTILINE)
    target = re.search(r"\.target\s+(\w+)", text)
    if target is None:
        raise PtxError("PTX without a .target directive")
    entries: dict[str, Entry] = {}
    outside: list[str] = []
    at = 0
    for head in ENTRY.finditer(text):
        if head.start() < at:
            continue
        end = _closing(text, head.end() - 1)
        outside.append(text[at : head.start()])
        entry = _entry(head[1], head[2] or "", text[head.end() : end], text.count("\n", 0, head.end()) + 1,
                       files)
        entries[entry.name] = entry
        at = end + 1
    outside.append(text[at:])
    variables = tuple(_variable(m) for part in outside for s in part.split(";") if (m := VARIABLE.search(s)))
    return Module(target[1], entries, variables)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise PtxError("PTX ends inside a kernel body")


def _variable(m: re.Match[str]) -> Variable:
    space, align, kind, name, dims, init = m[1], int(m[2] or 1), m[3], m[4], m[5], m[6]
    if kind not in WIDTHS:
        raise PtxError(f"variable {name} has the unknown type .{kind}")
    item = WIDTHS[kind] // 8
    size = item
    for d in re.findall(r"\[(\d*)\]", dims):
        size *= int(d or 0)
    data = b""
    if init:
        values = [_immediate(v.strip(), 0) for v in init.strip().strip("{}").split(",")]
        data = b"".join((v.value & (1 << WIDTHS[kind]) - 1).to_bytes(item, "little") for v in values)
    return Variable(name, space, max(align, item), size, data)


def _entry(name: str, params: str, body: str, first_line: int, files: dict[str, str]) -> Entry:
    registers: dict[str, int] = {}
    variables: list[Variable] = []
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    scopes: list[dict[str, str]] = [{}]
    count, source = 0, ""
    for kind, text, offset in _statements(body):
        line = first_line + body.count("\n", 0, offset)
        if kind == "open":
            count += 1
            scopes.append({})
        elif kind == "close":
            scopes.pop()
        elif kind == "label":
            labels[text] = len(code)
        elif kind == "loc":
            number, at = text.split()[1:3]
            source = f"{files.get(number, number)}:{at}"
        elif m := REGISTERS.match(text):
            if m[1] not in WIDTHS:
                raise PtxError(f"line {line}: register type .{m[1]} is not known")
            for item in m[2].split(","):
                item = item.strip()
                ranged = re.fullmatch(r"([%\w$]+)<(\d+)>", item)
                for reg in [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [item]:
                    inner = reg if len(scopes) == 1 else f"{reg}@{count}"
                    scopes[-1][reg] = inner
                    registers[inner] = WIDTHS[m[1]]
        elif m := VARIABLE.match(text):
            variables.append(_variable(m))
        elif not text.startswith(".pragma"):
            code.append(_instruction(text, line, scopes, source))
    sized = tuple((m[2], WIDTHS[m[1]] // 8 * int(m[3] or 1)) for m in PARAM.finditer(params))
    return Entry(name, sized, registers, tuple(variables), tuple(code), labels)


def _statements(body: str) -> Iterator[tuple[str, str, int]]:
    """Split a body in labels, scope braces and statements, with their offsets. A brace opens a scope only at the start
    of a statement; elsewhere it belongs to a vector operand."""
    i, n = 0, len(body)
    while i < n:
        if body[i].isspace() or body[i] == ";":
            i += 1
        elif body[i] in "{}":
            yield ("open" if body[i] == "{" else "close"), "", i
            i += 1
        elif body.startswith(".loc", i):
            end = body.find("\n", i)
            yield "loc", body[i:end], i
            i = end
        elif m := re.compile(r"([$A-Za-z_%][\w$]*):(?!:)").match(body, i):
            yield "label", m[1], i
            i = m.end()
        else:
            end = body.find(";", i)
            if end < 0:
                raise PtxError("a statement has no closing semicolon")
            yield "statement", body[i:end].strip(), i
            i = end + 1


def _instruction(text: str, line: int, scopes: list[dict[str, str]], source: str) -> Instruction:
    m = re.match(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.DOTALL)
    if m is None:
        raise PtxError(f"line {line}: cannot read {text!r}")
    try:
        operands = tuple(_operand(p, scopes) for p in _split(m[4]))
    except ValueError as e:
        raise PtxError(f"line {line}: cannot read the operands of {text!r}: {e}") from e
    guard = _scoped(m[2], scopes) if m[2] else ""
    return Instruction(line, m[3], operands, guard, bool(m[1]), " ".join(text.split()), source)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _scoped(name: str, scopes: list[dict[str, str]]) -> str:
    return next((s[name] for s in reversed(scopes) if name in s), name)


def _operand(text: str, scopes: list[dict[str, str]]) -> Operand:
    if text == "_":
        return Operand("sink")
    if text.startswith("{"):
        return Operand("vec", items=tuple(_operand(p, scopes) for p in _split(text[1:-1])))
    if text.startswith("["):
        inner = _split(text[1:-1])
        if len(inner) > 1:                     # tensor map coordinates: [map, {x, y}]
            return Operand("addr", items=tuple(_operand(p, scopes) for p in inner))
        m = re.fullmatch(r"(.+?)\s*(?:([+-])\s*(-?\w+))?", inner[0])
        if m is None:
            raise ValueError(text)
        offset = int(m[3], 0) if m[3] else 0
        return Operand("addr", items=(_operand(m[1], scopes),), value=-offset if m[2] == "-" else offset)
    if "|" in text:
        return Operand("pair", items=tuple(_operand(p.strip(), scopes) for p in text.split("|")))
    if text.startswith("!"):
        return Operand("reg", _scoped(text[1:].strip(), scopes), negated=True)
    if NUMBER.match(text) or re.match(r"^0[fdFD][0-9a-fA-F]+$", text):
        return _immediate(text, 0)
    if text.startswith("%") or any(text in s for s in scopes):
        return Operand("reg", _scoped(text, scopes))
    if re.fullmatch(r"[\w$]+", text):
        return Operand("sym", text)
    raise ValueError(text)


def _immediate(text: str, bits: int) -> Operand:
    if text[:2].lower() == "0f":
        return Operand("imm", value=int(text[2:], 16), bits=32)
    if text[:2].lower() == "0d":
        return Operand("imm", value=int(text[2:], 16), bits=64)
    return Operand("imm", value=int(text.rstrip("U"), 0), bits=bits)
