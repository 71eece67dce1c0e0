"""Compiles kernel variants with NVRTC, without a GPU or a driver, and keeps the results on disk.

One compilation covers all entries of a source under one choice of defines. Hand-written `.ptx` is assembled by
nvJitLink and takes no defines. A `Builder` belongs to whoever launches
(a queue, a test, a tool) and remembers what it built; nothing here is global.
"""
from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.kernel import Value, Variant
from blackwell_infer.kernels.source import read_assembly, read_source, source_root
from blackwell_infer.log import Progress, logger, silent

OPTIONS, VERBOSE = ("--std=c++17", "--generate-line-info", "--no-cache"), "--ptxas-options=-v"
ASSEMBLER_OPTIONS = ("-Xptxas=-v", "-lineinfo")
MAGIC = b"bwinfer-cubin-2\n"

Defines = tuple[tuple[str, Value], ...]


class Usage(msgspec.Struct, frozen=True):
    """What the assembler reports of one entry: registers of a thread, the rest in bytes (shared memory is static)."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


class Unit(msgspec.Struct, frozen=True):
    """One compiled source: the machine code of all its entries, the PTX it came from, and what each entry uses."""

    cubin: bytes
    ptx: str
    usage: dict[str, Usage]
    log: str


class Binary(msgspec.Struct, frozen=True):
    """Machine code that holds a variant's entry, and that entry's usage (see `Usage`)."""

    arch: str
    cubin: bytes
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    log: str


def default_cache(environ: Mapping[str, str]) -> Path | None:
    """The user's cache folder for compiled kernels; None for a user without a home, whose kernels are not kept."""
    base = environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "bwinfer" / "kernels"
    except RuntimeError as error:
        logger.warning("compiled kernels are not kept: %s", error)
        return None


class Builder:
    """Turns variants into binaries for one architecture. `cache=None` keeps nothing on disk. Safe to share by threads.
    Without `machine_code` units hold the same PTX and nothing else, in half the time: enough for the interpreter.

    KernelError: an arch that the kernel does not declare, or a source that does not compile (the message starts with
    the variant's key and holds the compiler's file:line).
    """

    def __init__(self, arch: str, cache: Path | None = None, root: Path | None = None,
                 machine_code: bool = True) -> None:
        self.arch = arch
        self.machine_code = machine_code
        self.cache = cache
        self.root = root or source_root()
        self._units: dict[tuple[str, Defines], Unit] = {}
        self._sources: dict[str, str] = {}
        self._lock = Lock()

    def build(self, v: Variant) -> Binary:
        """The variant's binary: remembered, from disk, or compiled now."""
        kernel = v.kernel
        unit = self.unit(v)
        usage = unit.usage.get(kernel.entry)
        if usage is None:
            names = ", ".join(sorted(unit.usage)) or "none"
            raise KernelError(f'{v.key}: {kernel.source} has no extern "C" entry {kernel.entry} (found: {names})')
        return Binary(self.arch, unit.cubin, usage.registers, usage.spill_bytes, usage.stack_bytes, usage.shared_bytes,
                      unit.log)

    def unit(self, v: Variant) -> Unit:
        """The variant's whole source, with all its entries, under the variant's defines."""
        if self.arch not in v.kernel.archs:
            raise KernelError(f"{v.key}: no kernel for {self.arch}; it exists for {', '.join(v.kernel.archs)}")
        key = (v.kernel.source, v.defines)
        unit = self._units.get(key)
        if unit is None:
            unit = self._load_or_compile(v)
            self._units[key] = unit
        return unit

    def build_many(self, variants: Iterable[Variant], progress: Progress = silent, threads: int = 0) -> None:
        """Build variants on `threads` threads (0 takes one per processor, at most 8). Raises the first error met."""
        units: dict[tuple[str, Defines], list[Variant]] = {}
        for v in variants:
            units.setdefault((v.kernel.source, v.defines), []).append(v)
        groups = list(units.values())
        if not groups:
            return
        with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
            waiting = [pool.submit(self._build_all, group) for group in groups]
            try:
                for done, future in enumerate(as_completed(waiting), 1):
                    future.result()
                    progress("compiling kernels", done, len(groups), "kernels")
            finally:
                for future in waiting:
                    future.cancel()

    def _build_all(self, group: list[Variant]) -> None:
        for v in group:
            if self.machine_code:
                self.build(v)
            else:
                self.unit(v)

    def _load_or_compile(self, v: Variant) -> Unit:
        source = v.kernel.source
        with self._lock:
            if source not in self._sources:
                self._sources[source] = (read_assembly(source, self.root, self.arch) if source.endswith(".ptx") else
                                         read_source(source, self.root))
            text = self._sources[source]
        target = ((f"--gpu-architecture={self.arch}", VERBOSE) if self.machine_code else
                  (f"--gpu-architecture=compute{self.arch.removeprefix('sm')}",))
        options = (*target, *OPTIONS, *(f"-D{name}={value}" for name, value in v.defines))
        make, version = compile_text, compiler_version
        if source.endswith(".ptx"):
            if not self.machine_code:
                return Unit(b"", text, {}, "")
            options, make, version = (f"-arch={self.arch}", *ASSEMBLER_OPTIONS), assemble_text, assembler_version
        if self.cache is None:
            return make(text, source, options, v.key)
        path = self.cache / f"{cache_key(text, options, version())}.bin"
        unit = read_unit(path)
        if unit is None:
            unit = make(text, source, options, v.key)
            try:
                write_unit(path, unit)
            except OSError as error:
                self.cache = None
                logger.warning("compiled kernels are not kept: %s", error)
        return unit


def cache_key(text: str, options: tuple[str, ...], version: tuple[int, int]) -> str:
    """Digest of everything that the machine code depends on."""
    return hashlib.blake2b(repr((text, options, version)).encode(), digest_size=20).hexdigest()


def read_unit(path: Path) -> Unit | None:
    """A kept unit, or None if there is none or the file is damaged (it is then compiled and written again)."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    head, body = raw[: len(MAGIC) + 32], raw[len(MAGIC) + 32:]
    if head == MAGIC + hashlib.sha256(body).digest():
        return msgspec.msgpack.decode(body, type=Unit)
    logger.info("%s is damaged and is built again", path)
    return None


def write_unit(path: Path, unit: Unit) -> None:
    """Write through a temporary file, so that readers and other writers see all of it or nothing. Raises OSError."""
    body = msgspec.msgpack.encode(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def compiler_version() -> tuple[int, int]:
    """(major, minor) of NVRTC. KernelError: it cannot be loaded."""
    nvrtc = _nvrtc()
    _, major, minor = nvrtc.nvrtcVersion()
    return int(major), int(minor)


def compile_text(text: str, name: str, options: tuple[str, ...], key: str) -> Unit:
    """Compile an inlined source with NVRTC. KernelError holds the variant's key and the compiler's messages."""
    nvrtc = _nvrtc()
    error, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    _check(nvrtc, error, key)
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        raw = _fetch(nvrtc, program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, key)
        log = re.sub(r"ptxas info\s*: Compile time.*\n?", "", raw.decode(errors="replace").rstrip("\0\n "))
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"{key}: does not compile with {' '.join(options)}:\n{log or error.name}")
        cubin = _fetch(nvrtc, program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, key)
        ptx = _fetch(nvrtc, program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, key).decode().rstrip("\0")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Unit(cubin, ptx, parse_usage(log), log)


def assembler_version() -> tuple[int, int]:
    """(major, minor) of nvJitLink. KernelError: it cannot be loaded."""
    major, minor = _nvjitlink().version()
    return int(major), int(minor)


def assemble_text(text: str, name: str, options: tuple[str, ...], key: str) -> Unit:
    """Assemble PTX with nvJitLink. KernelError holds the variant's key and the assembler's messages."""
    linker = _nvjitlink()
    handle = linker.create(len(options), list(options))
    data = text.encode()
    failure: Exception | None = None
    try:
        try:
            linker.add_data(handle, linker.InputType.PTX, data, len(data), name)
            linker.complete(handle)
        except linker.nvJitLinkError as error:
            failure = error
        logs = []
        for size, get in ((linker.get_error_log_size, linker.get_error_log),
                          (linker.get_info_log_size, linker.get_info_log)):
            raw = bytearray(size(handle))
            get(handle, raw)
            logs.append(raw.decode(errors="replace").rstrip("\0\n "))
        log = re.sub(r"ptxas info\s*: Compile time.*\n?", "", "\n".join(logs).strip())
        if failure is not None:
            raise KernelError(f"{key}: does not assemble with {' '.join(options)}:\n{log or failure}") from failure
        cubin = bytearray(linker.get_linked_cubin_size(handle))
        linker.get_linked_cubin(handle, cubin)
    finally:
        linker.destroy(handle)
    return Unit(bytes(cubin), text, parse_usage(log), log)


def parse_usage(log: str) -> dict[str, Usage]:
    """Usage per entry from the assembler's verbose log."""
    usage: dict[str, Usage] = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        entry = part.partition("'")[0]
        used = re.search(r"Used (\d+) registers(.*)", part)
        if used is None:
            continue
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        shared = re.search(r"(\d+) bytes smem", used[2])
        stack, stores, loads = (int(n) for n in frame.groups()) if frame else (0, 0, 0)
        usage[entry] = Usage(int(used[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    return usage


def _fetch(nvrtc: Any, program: Any, size: Callable[[Any], Any], get: Callable[[Any, Any], Any], key: str) -> bytes:
    error, count = size(program)
    _check(nvrtc, error, key)
    data = bytearray(count)
    (error,) = get(program, data)
    _check(nvrtc, error, key)
    return bytes(data)


def _check(nvrtc: Any, error: Any, key: str) -> None:
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"{key}: the kernel compiler failed: {error.name}")


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
        nvrtc.nvrtcVersion()
    except Exception as error:
        raise KernelError(f"the kernel compiler (NVRTC) cannot be loaded: {error}; "
                          "pip install nvidia-cuda-nvrtc") from error
    return nvrtc


def _nvjitlink() -> Any:
    try:
        from cuda.bindings import nvjitlink
        nvjitlink.version()
    except Exception as error:
        raise KernelError(f"the PTX assembler (nvJitLink) cannot be loaded: {error}; "
                          "pip install nvidia-nvjitlink") from error
    return nvjitlink
