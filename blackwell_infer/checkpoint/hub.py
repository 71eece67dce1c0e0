"""Finds a model by path, or downloads it from a hub with huggingface_hub (HF_ENDPOINT, HF_TOKEN, HF_HOME, ...)."""
from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from blackwell_infer.checkpoint.gguf import part_paths
from blackwell_infer.checkpoint.head import named_as_head
from blackwell_infer.checkpoint.hf import INDEX, SINGLE, shard_names
from blackwell_infer.config import DEMO
from blackwell_infer.errors import CheckpointError, DownloadError
from blackwell_infer.log import Progress

_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[^:\\\0]+\.gguf))?")
TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "hf_quant_config.json", "lynn_quant_manifest.json", "lynn_engine_variable_expert_spec.json",
)
"""What a Hugging Face folder may hold besides weights and is worth fetching."""
SHIPPED = Path(__file__).resolve().parents[1] / "demo"
"""The Hugging Face folder of the demo model."""


def resolve(model: str, *, revision: str, progress: Progress) -> Path:
    """The path of a model: the package's own for `config.DEMO`; `model` itself if it is an existing file or folder;
    else the download of a hub id.

    A hub id is `org/name` (a Hugging Face folder, or the one GGUF of the repository) or `org/name:file.gguf`.
    `progress` hears bytes. CheckpointError if `model` is neither; DownloadError says why a download failed: no such
    repository, file or revision, no access, no network, no space, interrupted. What arrived is kept for the next try.
    """
    path = SHIPPED if model == DEMO else existing(model)
    if path is not None:
        return path
    match = _ID.fullmatch(model)
    if match is None or ".." in model:
        raise CheckpointError(
            f"{model!r} is neither an existing file or folder nor a hub id (org/name or org/name:file.gguf), "
            f"nor {DEMO}, the model that comes along"
        )
    return _Repository(match["repo"], revision, progress).fetch(match["file"])


def existing(model: str) -> Path | None:
    """The file or folder of this name, if there is one."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, an unknown ~user: no path in any case
        return None


def _free(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))).free


class _Repository:
    """One repository of the hub at one revision."""

    def __init__(self, name: str, revision: str, progress: Progress) -> None:
        self.name = name
        self.revision = revision
        self.progress = progress

    def fetch(self, file: str | None) -> Path:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return self._cached(file)
        sizes, commit = self._list()
        names = self._wanted(sizes, file, commit)
        first = self._get(names, sizes, commit)
        return first if names[0].endswith(".gguf") else first.parent

    def _list(self) -> tuple[dict[str, int], str]:
        """File name -> bytes, and the commit that the revision stands for."""
        from huggingface_hub import HfApi

        info = self._call("list", lambda: HfApi().model_info(self.name, revision=self.revision, files_metadata=True))
        return {s.rfilename: s.size or 0 for s in info.siblings or []}, str(info.sha)

    def _wanted(self, sizes: dict[str, int], file: str | None, commit: str) -> list[str]:
        """The files to have, the one that names the model first."""
        where = f"{self.name} (revision {self.revision})"
        models = sorted({str(part_paths(Path(n))[0]) for n in sizes if n.endswith(".gguf")})
        if file is not None or ("config.json" not in sizes and len(models) == 1):
            names = [str(part) for part in part_paths(Path(file or models[0]))]
            missing = [name for name in names if name not in sizes]
            if missing:
                have = f"it has {', '.join(models[:12])}" if models else "it has no GGUF files"
                raise DownloadError(f"{where} has no file {missing[0]}; {have}")
            return names
        weights = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
        if "config.json" not in sizes or not weights:
            if models:
                raise DownloadError(f"{where} holds several GGUF models; name one: {self.name}:{models[0]}")
            raise DownloadError(f"{where} holds neither config.json with safetensors nor a GGUF model")
        heads = named_as_head(weights)
        if SINGLE in sizes:
            weights = [SINGLE, *heads]
        elif INDEX in sizes:
            weights = [INDEX, *sorted({*shard_names(self._get([INDEX], sizes, commit)).values(), *heads})]
        missing = [name for name in weights if name not in sizes]
        if missing:
            raise DownloadError(f"{where} lacks {missing[0]}, which its index names; tell its author")
        return [name for name in TEXT_FILES if name in sizes] + weights

    def _get(self, names: Sequence[str], sizes: dict[str, int], commit: str) -> Path:
        """Download what is not in the cache yet, after checking that it fits the disk; the path of the first."""
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        absent = self._call("the cache", lambda: [
            n for n in names if not isinstance(try_to_load_from_cache(self.name, n, revision=commit), str)])
        need = sum(sizes[name] for name in absent)
        folder = Path(constants.HF_HUB_CACHE)
        self._check_space(folder, need)
        bar = _bar(f"downloading {self.name}", need, self.progress)
        paths = []
        for name in names:
            fetch = partial(hf_hub_download, self.name, name, revision=self.revision, tqdm_class=bar)
            paths.append(Path(self._call(name, fetch, need, folder)))
        return paths[0]

    def _check_space(self, folder: Path, need: int) -> None:
        if need > _free(folder):
            raise self._full(folder, need)

    def _full(self, folder: Path, need: int) -> DownloadError:
        return DownloadError(
            f"{self.name}: the disk is full: the download needs {need} bytes in {folder}, {_free(folder)} are free; "
            "make room, or set HF_HOME to a folder on another disk"
        )

    def _path(self, name: str) -> Path:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, name, revision=self.revision)
        if not isinstance(found, str):
            raise DownloadError(f"{self.name}: {name} is not in the cache (revision {self.revision})")
        return Path(found)

    def _cached(self, file: str | None) -> Path:
        """Without a network: what the cache has. Opening it will name what is missing."""
        from huggingface_hub import snapshot_download

        try:
            if file is not None:
                paths = [self._path(str(part)) for part in part_paths(Path(file))]
                return paths[0]
            snapshot = partial(snapshot_download, self.name, revision=self.revision, local_files_only=True,
                               allow_patterns=["config.json", "*.gguf"])
            folder = Path(self._call("the cached copy", snapshot))
            models = sorted({part_paths(path)[0] for path in folder.rglob("*.gguf")})
            return models[0] if len(models) == 1 and not (folder / "config.json").exists() else folder
        except DownloadError as error:
            raise DownloadError(
                f"{self.name} (revision {self.revision}) is not in the cache, and HF_HUB_OFFLINE forbids downloading; "
                "unset it, or give a path"
            ) from error

    def _call(self, what: str, call: Callable[[], Any], need: int = 0, folder: Path | None = None) -> Any:
        """Run one request of the hub client and turn whatever it raises into a DownloadError."""
        try:
            return call()
        except Exception as error:  # the client's transport is its own business: its errors share no base class
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if folder is not None and (full or "No space left" in str(error)):
                raise self._full(folder, need) from error
            raise DownloadError(f"{self.name}: {self._reason(what, error)}") from error

    def _reason(self, what: str, error: Exception) -> str:
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__              # the client hides why it looked into its cache
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            return f"{error.filename} cannot be used ({error.strerror}); set HF_HOME to a folder that can be written"
        if isinstance(error, errors.GatedRepoError):
            return "access is restricted; accept its terms on the hub and set HF_TOKEN"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "neither a path here nor a repository on the hub; check the name, or set HF_TOKEN if it is private"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"has no revision {self.revision!r}"
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            if status in (401, 403):
                return f"no access (HTTP {status}); check HF_TOKEN"
            return f"the hub answered HTTP {status} for {what}; try again later"
        text = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        return (
            f"{what} was interrupted or the hub is out of reach ({text}); run again: finished files are kept. "
            "HF_HUB_OFFLINE=1 uses only what is there"
        )


def _bar(stage: str, total: int, progress: Progress) -> type:
    """A stand-in for the client's progress bars that adds up the bytes of all files."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    done = [0]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            done[0] += int(n or 0)
            progress(stage, done[0], max(total, done[0]), "bytes")

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, which the client counts apart from bytes written."""

        def set_transfer_postfix_str(self, s: str = "", refresh: bool = True) -> None:
            """The rate that goes with `update_transfer`."""

    return Bar
