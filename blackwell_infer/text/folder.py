"""The tokenizer and the chat template of a Hugging Face folder."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blackwell_infer.checkpoint.hf import read_json
from blackwell_infer.errors import TemplateError, TokenizerError
from blackwell_infer.log import logger
from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf
from blackwell_infer.text.sentencepiece import read_sentencepiece
from blackwell_infer.text.tokenizer import Tokenizer, stop_set

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def tokenizer_from_folder(path: Path, generation: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json, or a SentencePiece tokenizer.model.

    Special tokens come from tokenizer_config.json, then special_tokens_map.json, then `generation`
    (generation_config.json). TokenizerError: no vocabulary, a damaged one, or one of an unknown kind.
    """
    settings = _optional(path / "special_tokens_map.json") | {
        key: value for key, value in _optional(path / "tokenizer_config.json").items() if value is not None
    }
    if (path / "tokenizer.json").is_file():
        backend = load_backend(path / "tokenizer.json")
    elif (path / "tokenizer.model").is_file():
        model = path / "tokenizer.model"
        backend = tokenizer_from_gguf(read_sentencepiece(model.read_bytes(), str(model))).backend
        settings.setdefault("add_bos_token", True)
    else:
        raise TokenizerError(f"{path}: has neither tokenizer.json nor tokenizer.model; download the vocabulary too")
    ends = _ids(generation.get("eos_token_id"))
    bos = _special(backend, settings, "bos_token")
    eos = _special(backend, settings, "eos_token")
    if eos is None and ends:
        eos = ends[0]
    added = [_special(backend, settings, key) for key in ("eot_token", "eom_token")]
    return Tokenizer(
        backend, bos_id=bos, eos_id=eos, stop_ids=stop_set(backend, (*ends, eos, *added)),
        add_bos=_adds_bos(backend, bos, settings),
    )


def load_backend(file: Path) -> Backend:
    """A tokenizer.json, without the truncation and padding that some files carry, and with the ids that it states."""
    from tokenizers import Tokenizer as Backend

    try:
        text = file.read_text(encoding="utf-8")
        backend = Backend.from_str(text)
        stated = {token["content"]: token["id"] for token in json.loads(text).get("added_tokens", ())}
        if any(backend.token_to_id(content) != id for content, id in stated.items()):
            # The library numbers added tokens itself, after the vocabulary, unless the vocabulary holds them.
            content = json.loads(text)
            content["model"]["vocab"] |= stated
            backend = Backend.from_str(json.dumps(content))
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"{file}: is no tokenizer that the tokenizers library reads ({error})") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def template_source(path: Path) -> str | None:
    """The chat template of a folder: chat_template.jinja, else tokenizer_config.json's, else chat_template.json's."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{file}: cannot be read as UTF-8 text ({error}); download it again") from error
    found = _optional(path / "tokenizer_config.json").get("chat_template")
    if found is None:
        found = _optional(path / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {str(item.get("name")): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
        if found is None and named:
            logger.warning("%s: none of the chat templates %s is called 'default'; chat is off", path, sorted(named))
    if not isinstance(found, str | None):
        raise TemplateError(f"{path}: its chat_template is {type(found).__name__}, no text; download it again")
    return found


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _special(backend: Backend, settings: Mapping[str, Any], key: str) -> int | None:
    """The id of a special token that is given as text or as {"content": text}."""
    value = settings.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    return backend.token_to_id(text) if isinstance(text, str) else None


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _adds_bos(backend: Backend, bos: int | None, settings: Mapping[str, Any]) -> bool:
    """The stated rule, or else what the tokenizer's own post-processor does to an empty text."""
    stated = settings.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    return bos is not None and backend.encode("", add_special_tokens=True).ids[:1] == [bos]
