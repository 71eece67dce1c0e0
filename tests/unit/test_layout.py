"""The shape of the tree: file sizes, folder depth, imports, the wheel's package list, and what the docs promise."""
from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "blackwell_infer"
CODE = (".py", ".cu", ".cuh", ".ptx")
FRAMEWORKS = {"torch", "jax", "transformers", "triton", "cupy"}
MODEL_IMPORTS = (
    "blackwell_infer.types", "blackwell_infer.errors", "blackwell_infer.ops.api", "blackwell_infer.ops.batch",
    "blackwell_infer.quant.format", "blackwell_infer.kv.spec", "blackwell_infer.kv.recurrent", "blackwell_infer.models",
)


def tracked() -> list[Path]:
    """Files of the project: what git tracks, or, in an unpacked archive, what stands there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [p for folder in (PACKAGE, ROOT / "ptx", ROOT / "tests", ROOT / "tools") for p in folder.rglob("*")]
    return [p for p in paths if p.is_file() and "__pycache__" not in p.parts]


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} if node.module != "blackwell_infer" else {
                f"blackwell_infer.{alias.name}" for alias in node.names}
    return found


def test_code_files_stay_under_500_lines() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in tracked() if p.suffix in CODE}
    assert len(lengths) > 40
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 500} == {}


def test_folders_are_at_most_two_levels_deep() -> None:
    roots = (PACKAGE, ROOT / "ptx", ROOT / "tests", ROOT / "tools", ROOT / "docs")
    deep = [p for p in tracked() for r in roots if p.is_relative_to(r) and len(p.relative_to(r).parts) > 3]
    assert deep == []


def test_no_framework_is_imported_anywhere() -> None:
    used = {(str(p.relative_to(ROOT)), name) for p in PACKAGE.rglob("*.py") for name in imports(p)
            if name.partition(".")[0] in FRAMEWORKS}
    assert used == set()


def test_models_import_only_what_they_may() -> None:
    wrong = {(p.name, name) for p in (PACKAGE / "models").rglob("*.py") for name in imports(p)
             if name.startswith("blackwell_infer") and not name.startswith(MODEL_IMPORTS)}
    assert wrong == set()


def test_only_config_reads_the_projects_variables() -> None:
    readers = [p.name for p in PACKAGE.rglob("*.py") if "BWINFER_" in p.read_text(encoding="utf-8")]
    assert set(readers) <= {"config.py", "main.py"}  # main.py names one in a help text


def test_every_package_says_what_it_is_in_its_docstring() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_wheel_lists_every_package() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    assert set(table["packages"]) == found | {"blackwell_infer._ptx"}
    folders = {p.parent for p in PACKAGE.rglob("*.py")}
    assert {f for f in folders if not (f / "__init__.py").is_file()} == set()


def test_the_wheel_lists_every_file_that_is_not_code() -> None:
    """CI builds the wheel and compares; this says it sooner."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {path for pattern in table["package-data"]["blackwell_infer"] for path in PACKAGE.glob(pattern)}
    assert {p for p in tracked() if p.is_relative_to(PACKAGE) and p.suffix != ".py"} == packed
    assert PACKAGE / "demo" / "model.safetensors" in packed
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'diff -r blackwell_infer/demo "$work/unpacked/blackwell_infer/demo"' in script


def test_tracked_files_name_no_machine() -> None:
    # Home folders, mount points and private addresses, spelled so that this file does not match itself.
    pattern = re.compile("|".join(["/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/[a-z]", "/Us" + "ers/[a-z]",
                                   r"\b(10|192\.168)\.\d+\.\d+\.\d+\b"]))
    hits = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}: {m[0]}" for m in pattern.finditer(text)]
    assert hits == []


def test_nothing_unfinished_is_marked_in_the_product() -> None:
    marks = re.compile("TO" + "DO|FIX" + "ME|XX" + "X|NotImplemented" + "Error")
    files = [p for p in tracked() if p.suffix in CODE and (p.is_relative_to(PACKAGE) or p.is_relative_to(ROOT / "ptx"))]
    assert [p for p in files if marks.search(p.read_text(encoding="utf-8"))] == []


def test_importing_the_package_loads_no_cuda_library_and_is_quick() -> None:
    code = ("import sys, time; t = time.perf_counter(); import blackwell_infer; t = time.perf_counter() - t; "
            "bad = sorted(m for m in sys.modules if m.split('.')[0] in ('cuda', 'nvmath', 'tokenizers', 'rich')); "
            "print(t, bad)")
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for _ in range(3)]
    assert all(run.strip().endswith("[]") for run in runs), runs
    assert min(float(run.split()[0]) for run in runs) < 0.2


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_named_in_the_docs_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:blackwell_infer|ptx|tests|tools|docs|examples)/[\w./-]*)`", text))
    assert named
    assert sorted(n for n in named if not (ROOT / n).exists()) == []


def test_ci_calls_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- test command -->\n```sh\n(.+)\n```", readme)
    assert command is not None
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in script if line.strip()][-1] == command[1]


def test_ci_runs_the_main_job_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- main job -->\n```sh\n(make chat)\n```", readme)
    assert command is not None
    assert f"| {command[1]} " in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_table_of_settings_in_the_docs_is_fresh() -> None:
    done = subprocess.run([sys.executable, "tools/docs.py", "--check"], cwd=ROOT, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, "run: python tools/docs.py"
