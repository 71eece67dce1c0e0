"""A tokenizer's vocabulary as llguidance reads it: the bytes of every token, as a reader of the answer sees them."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blackwell_infer.errors import ConfigError
from blackwell_infer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Vocabulary:
    """What `llguidance.TokenizerWrapper` asks of a tokenizer. Ids from the tokenizer's size up to `size` have no text.

    A control token that decoding keeps (`Tokenizer.visible`) is its text; of the others a grammar knows only the names.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        stops = sorted(tokenizer.stop_ids)
        last = tokenizer.eos_id if tokenizer.eos_id is not None else stops[0] if stops else None
        if last is None:
            raise ConfigError("this model has no end token, so no grammar can end its answers; convert the model again "
                              "with its end token set")
        self._tokenizer = tokenizer
        self.stop_ids = (last, *(i for i in stops if i != last))
        self.eos_token_id = last
        self.bos_token_id = tokenizer.bos_id
        ids = range(min(size, tokenizer.size))
        hidden = [i for i in ids if tokenizer.is_special(i) and i not in tokenizer.visible]
        self.special_token_ids = sorted({*hidden, *(i for i in self.stop_ids if i < size)})
        named = set(self.special_token_ids)
        self.tokens = [tokenizer.piece(i, skip_specials=i not in named) for i in ids]
        self.tokens += [b""] * (size - len(self.tokens))
        self._ids: dict[bytes, int] = {}

    def __call__(self, data: bytes) -> list[int]:
        """Tokens whose bytes together are `data`, as the model would cut it in the middle of a text."""
        ids = self._tokenizer.spell(data)
        return self._longest(data) if ids is None else ids

    def _longest(self, data: bytes) -> list[int]:
        """Tokens of `data`, each the longest that fits; ends before a byte that no token has."""
        if not self._ids:
            named = set(self.special_token_ids)
            self._ids.update((piece, i) for i, piece in enumerate(self.tokens) if piece and i not in named)
        ids, at, most = [], 0, max(map(len, self._ids), default=0)
        while at < len(data):
            size = next((n for n in range(min(most, len(data) - at), 0, -1) if data[at:at + n] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[data[at:at + size]])
            at += size
        return ids


def read_vocabulary(tokenizer: Tokenizer, size: int) -> LLTokenizer:
    """llguidance's view of a tokenizer whose model has `size` logits; takes about a second for 150 000 tokens."""
    library = grammar_library()
    vocabulary = Vocabulary(tokenizer, size)
    wrapper = library.TokenizerWrapper(vocabulary)
    # Slices: sets of tokens for which masks are made beforehand, those that JSON strings are made of.
    slices = library.LLTokenizer.json_slices()
    made: LLTokenizer = library.LLTokenizer(wrapper, size, eos_token=list(vocabulary.stop_ids), slices=slices)
    return made


def grammar_library() -> Any:
    """llguidance, imported when a grammar is first used. ConfigError if it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise ConfigError("grammars need llguidance, which is not installed: pip install 'blackwell-infer[grammar]'"
                          ) from error
    return llguidance
