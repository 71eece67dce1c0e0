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


class Operand(msgspec.Struct, frozen=True, gc=False):
    """`kind` reg: name; imm: value (an integer, or the bits of a float of `bits`); sym: name; vec and pair: items;
    addr: items[0] is a reg, sym or imm, `value` the byte offset; `negated` marks a predicate read as its complement."""

    kind: Literal["reg", "imm", "sym", "vec", "pair", "addr", "sink"]
    name: str = ""
    value: int = 0
    bits: int = 0
    items: tuple[Operand, ...] = ()
    negated: bool = False


class Instruction(msgspec.Struct, frozen=True, gc=False):
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


class Module(msgspec.Struct, frozen=True, eq=False):
    """A PTX text, equal to itself alone. `variables` are those outside any kernel."""

    target: str
    entries: dict[str, Entry]
    variables: tuple[Variable, ...]


ENTRY = re.compile(r"(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*((?:\.\w+\s+[\d,\s]+)*)\{",
                   re.DOTALL)
PARAM = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s*(?:\.(?:global|shared|const|local)\s*)?"
                   r"(?:\.align\s+\d+\s*)?)?([\w$]+)"
                   r"(?:\[(\d+)\])?")
VARIABLE = re.compile(r"(?:\.visible\s+|\.extern\s+|\.weak\s+)*\.(shared|local|const|global)\s+(?:\.align\s+(\d+)\s+)?"
                      r"\.(\w+)\s+([\w$]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?", re.DOTALL)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
BRACES = re.compile(r"[{}]")
DELIMITERS = re.compile(r"[{}\[\],]")
SPACE = re.compile(r"[\s;]*")
LABEL = re.compile(r"([$A-Za-z_%][\w$]*):(?!:)")
OPCODE = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
ADDRESS = re.compile(r"(.+?)\s*(?:([+-])\s*(-?\w+))?")
OUTSIDE = re.compile(r"\s*(\.(version|target|address_size)\b[^\n]*|\.section\s[^{}]*\{[^{}]*\}|"
                     r"\.(visible|extern|weak|common|const|global|shared|local|pragma)\b[^;{}]*(\{[^{}]*\})?[^;{}]*;)")
"""directives, debug sections and variables outside kernels"""
BRANCH = re.compile(r"(^|\s)bra\b")
SYMBOL = re.compile(r"[\w$]+")


def parse_module(text: str) -> Module:
    """Parse a whole PTX text; PtxError names the line of what it does not understand."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)
    # The compiler puts the folder where it ran before the names that our sources give.
    files = {m[1]: re.sub(r"^.*/(?=ptx/)", "", m[2])
             for m in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)}
    text = re.sub(r"^\s*\.file\b[^\n]*", "", text, flags=re.MULTILINE)
    target = re.search(r"\.target\s+(\w+)", text)
    if target is None:
        raise PtxError("PTX without a .target directive")
    entries: dict[str, Entry] = {}
    outside: list[tuple[int, str]] = []
    at = 0
    for head in ENTRY.finditer(text):
        if head.start() < at:
            continue
        end = _closing(text, head.end() - 1)
        outside.append((line_of(text, at), text[at : head.start()]))
        entry = _entry(head[1], head[2] or "", text[head.end() : end], line_of(text, head.end()), files)
        entries[entry.name] = entry
        at = end + 1
    outside.append((line_of(text, at), text[at:]))
    return Module(target[1], entries, tuple(v for first, part in outside for v in _outside(part, first)))


def _outside(text: str, first_line: int) -> Iterator[Variable]:
    """The variables of a part of the text outside any kernel. PtxError for what may not stand there."""
    at = 0
    for part in OUTSIDE.finditer(text):
        if text[at : part.start()].strip():
            break
        at = part.end()
        if m := VARIABLE.fullmatch(part[1].removesuffix(";").strip()):
            yield _variable(m, first_line + line_of(text, part.start(1)) - 1)
    rest = text[at:].lstrip()
    if rest:
        line = first_line + line_of(text, len(text) - len(rest)) - 1
        raise PtxError(f"line {line}: cannot read {rest.splitlines()[0]!r} outside a kernel")


def _closing(text: str, start: int) -> int:
    depth = 0
    for brace in BRACES.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise PtxError(f"line {line_of(text, start)}: PTX ends inside the kernel body that begins here")


def line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _variable(m: re.Match[str], line: int) -> Variable:
    space, align, kind, name, dims, init = m[1], int(m[2] or 1), m[3], m[4], m[5], m[6]
    if not WIDTHS.get(kind):
        raise PtxError(f"line {line}: variable {name} has the unknown type .{kind}")
    item = WIDTHS[kind] // 8
    size = item
    for d in re.findall(r"\[(\d*)\]", dims):
        size *= int(d or 0)
    data = b""
    if init:
        try:
            values = [_immediate(v.strip(), 0) for v in init.strip().strip("{}").split(",")]
        except ValueError as e:
            raise PtxError(f"line {line}: cannot read the values of variable {name}: {e}") from e
        data = b"".join((v.value & (1 << WIDTHS[kind]) - 1).to_bytes(item, "little") for v in values)
    return Variable(name, space, max(align, item), size, data)


def _entry(name: str, params: str, body: str, first_line: int, files: dict[str, str]) -> Entry:
    registers: dict[str, int] = {}
    variables: list[Variable] = []
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    scopes = _Scopes()
    branches: list[tuple[int, tuple[int, ...]]] = []
    source, line, counted = "", first_line, 0
    for kind, text, offset in _statements(body, first_line):
        line += body.count("\n", counted, offset)
        counted = offset
        if kind == "statement" and text[0] != ".":
            if scopes.open_ones and BRANCH.search(text):
                branches.append((len(code), tuple(scopes.open_ones)))
            code.append(_instruction(text, line, scopes, source))
        elif kind == "open":
            scopes.open()
        elif kind == "close":
            scopes.close()
        elif kind == "label":
            if scopes.local(text) in labels:
                raise PtxError(f"line {line}: label {text} stands twice in one scope")
            labels[scopes.local(text)] = len(code)
        elif kind == "loc":
            number, at = [*text.split(), "", ""][1:3]
            source = f"{files.get(number, number)}:{at}"
        elif m := REGISTERS.match(text):
            if m[1] not in WIDTHS:
                raise PtxError(f"line {line}: register type .{m[1]} is not known")
            for item in m[2].split(","):
                item = item.strip()
                ranged = re.fullmatch(r"([%\w$]+)<(\d+)>", item)
                for reg in [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [item]:
                    registers[scopes.declare(reg)] = WIDTHS[m[1]]
        elif m := VARIABLE.match(text):
            variables.append(_variable(m, line))
        elif not text.startswith(".pragma"):
            raise PtxError(f"line {line}: cannot read {text!r}")
    for i, chain in branches:
        code[i] = _resolved(code[i], chain, labels)
    for m in PARAM.finditer(params):
        if not WIDTHS.get(m[1]):
            raise PtxError(f"line {first_line}: parameter {m[2]} has the unknown type .{m[1]}")
    sized = tuple((m[2], WIDTHS[m[1]] // 8 * int(m[3] or 1)) for m in PARAM.finditer(params))
    return Entry(name, sized, registers, tuple(variables), tuple(code), labels)


class _Scopes:
    """Register names of the nested blocks at one place of the text, and the operands read there."""

    def __init__(self) -> None:
        self.names: list[dict[str, str]] = [{}]
        self.operands: dict[str, Operand] = {}
        self.open_ones: list[int] = []
        """numbers of the nested blocks that are open"""
        self.count = 0

    def open(self) -> None:
        self.count += 1
        self.open_ones.append(self.count)
        self.names.append({})
        self.operands = {}

    def close(self) -> None:
        self.names.pop()
        self.open_ones.pop()
        self.operands = {}

    def declare(self, name: str) -> str:
        inner = self.local(name)
        self.names[-1][name] = inner
        self.operands = {}
        return inner

    def local(self, name: str) -> str:
        """The name of a register or label that is declared here."""
        return f"{name}@{self.open_ones[-1]}" if self.open_ones else name

    def inner(self, name: str) -> str:
        return next((s[name] for s in reversed(self.names) if name in s), name)

    def operand(self, text: str) -> Operand:
        known = self.operands.get(text)
        if known is None:
            known = self.operands[text] = self.read(text)
        return known

    def read(self, text: str) -> Operand:
        if text == "_":
            return Operand("sink")
        if text.startswith("{"):
            return Operand("vec", items=tuple(self.operand(p) for p in _split(text[1:-1])))
        if text.startswith("["):
            inner = _split(text[1:-1])
            if len(inner) > 1:                     # tensor map coordinates: [map, {x, y}]
                return Operand("addr", items=tuple(self.operand(p) for p in inner))
            m = ADDRESS.fullmatch(inner[0])
            if m is None:
                raise ValueError(text)
            offset = int(m[3], 0) if m[3] else 0
            return Operand("addr", items=(self.operand(m[1]),), value=-offset if m[2] == "-" else offset)
        if "|" in text:
            return Operand("pair", items=tuple(self.operand(p.strip()) for p in text.split("|")))
        if text.startswith("!"):
            return Operand("reg", self.inner(text[1:].strip()), negated=True)
        if NUMBER.fullmatch(text):
            return _immediate(text, 0)
        if text.startswith("%") or any(text in s for s in self.names):
            return Operand("reg", self.inner(text))
        if SYMBOL.fullmatch(text):
            return Operand("sym", text)
        raise ValueError(text)


def _statements(body: str, first_line: int) -> Iterator[tuple[str, str, int]]:
    """Split a body in labels, scope braces and statements, with their offsets. A brace opens a scope only at the start
    of a statement; elsewhere it belongs to a vector operand."""
    i, n = 0, len(body)
    while True:
        i = SPACE.match(body, i).end()  # type: ignore[union-attr]
        if i >= n:
            return
        if body[i] in "{}":
            yield ("open" if body[i] == "{" else "close"), "", i
            i += 1
        elif body.startswith((".loc ", ".loc\t"), i):
            end = body.find("\n", i)
            yield "loc", body[i:end], i
            i = end
        elif m := LABEL.match(body, i):
            yield "label", m[1], i
            i = m.end()
        else:
            end = body.find(";", i)
            if end < 0:
                raise PtxError(f"line {first_line + line_of(body, i) - 1}: no semicolon closes "
                               f"{body[i:].splitlines()[0]!r}")
            yield "statement", body[i:end].strip(), i
            i = end + 1


def _instruction(text: str, line: int, scopes: _Scopes, source: str) -> Instruction:
    m = OPCODE.match(text)
    if m is None:
        raise PtxError(f"line {line}: cannot read {text!r}")
    try:
        operands = tuple([scopes.operand(p) for p in _split(m[4])])
    except ValueError as e:
        raise PtxError(f"line {line}: cannot read the operands of {text!r}: {e}") from e
    guard = scopes.inner(m[2]) if m[2] else ""
    return Instruction(line, m[3], operands, guard, bool(m[1]), " ".join(text.split()), source)


def _resolved(ins: Instruction, chain: tuple[int, ...], labels: dict[str, int]) -> Instruction:
    """A branch inside nested blocks, with the innermost label of that name."""
    name = ins.operands[0].name if ins.operands else ""
    found = next((f"{name}@{i}" for i in reversed(chain) if f"{name}@{i}" in labels), name)
    return msgspec.structs.replace(ins, operands=(Operand("sym", found), *ins.operands[1:])) if name else ins


def _split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    if "{" not in text and "[" not in text:
        return [p.strip() for p in text.split(",")] if text else []
    parts, depth, start = [], 0, 0
    for m in DELIMITERS.finditer(text):
        c = m[0]
        if c == ",":
            if depth == 0:
                parts.append(text[start : m.start()].strip())
                start = m.end()
        else:
            depth += 1 if c in "{[" else -1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _immediate(text: str, bits: int) -> Operand:
    if text[:2].lower() == "0f":
        return Operand("imm", value=int(text[2:], 16), bits=32)
    if text[:2].lower() == "0d":
        return Operand("imm", value=int(text[2:], 16), bits=64)
    digits = text.rstrip("U")
    octal = digits.lstrip("-").isdigit() and digits.lstrip("-")[:1] == "0"
    return Operand("imm", value=int(digits, 8 if octal else 0), bits=bits)
