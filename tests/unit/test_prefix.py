"""The tree of cached pages against a plain list of what every holder holds."""
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blackwell_infer.kv.prefix import Key, Node, Prefix, paged

texts = st.lists(st.sampled_from([(1,), (2,)]), min_size=1, max_size=9).map(tuple)
SLOTS = 3


def nodes(root: Node) -> list[Node]:
    return [root, *(n for child in root.children.values() for n in nodes(child))]


def every(root: Node, above: tuple[Key, ...] = ()) -> dict[tuple[Key, ...], int]:
    """Pages of the tree by the whole text up to them."""
    found = {(*above, *root.keys[: i + 1]): page for i, page in enumerate(root.pages)}
    for child in root.children.values():
        found |= every(child, (*above, *root.keys))
    return found


class Machine(RuleBasedStateMachine):
    """Holders of texts, the pages that the tree should have, and when each was let go."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Prefix(free=(1 << SLOTS) - 1)
        self.pages: dict[tuple[Key, ...], int] = {}
        self.released: dict[tuple[Key, ...], int] = {}
        self.holders: list[tuple[Key, ...]] = []
        self.pending: list[int] = []
        self.next = 0
        self.clock = 0
        self.history: list[tuple[Prefix, dict[tuple[Key, ...], int]]] = []

    def wanted(self, text: tuple[Key, ...]) -> bool:
        return any(h[: len(text)] == text for h in self.holders)

    @rule(text=texts)
    def acquire(self, text: tuple[Key, ...]) -> None:
        found = self.tree.match(text)
        n = next((n for n in range(len(text), 0, -1) if text[:n] in self.pages), 0)
        assert found == tuple(self.pages[text[: i + 1]] for i in range(n))
        self.tree = self.tree.acquire(text[:n])
        if n:
            self.holders.append(text[:n])

    @rule(text=texts, new=st.booleans(), data=st.data())
    def extend(self, text: tuple[Key, ...], new: bool, data: st.DataObject) -> None:
        had = ()
        if self.holders and not new:
            had = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        whole = had + text
        mine = tuple(range(self.next, self.next + len(whole)))
        self.next += len(whole)
        self.tree = self.tree.extend(whole, len(had), mine)
        for i, page in enumerate(mine):
            self.pages.setdefault(whole[: i + 1], page)
        self.holders.append(whole)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        text = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.tree = self.tree.release(text)
        self.clock += 1
        self.released |= {text[: i + 1]: self.clock for i in range(len(text))}

    @rule(count=st.integers(1, 6))
    def evict(self, count: int) -> None:
        idle = {t for t in self.pages if not self.wanted(t)}
        self.tree, gone = self.tree.evict(count)
        assert len(gone) == len(set(gone)) == min(count, len(idle))
        texts = {page: text for text, page in self.pages.items()}
        for page in gone:
            text = texts[page]
            ends = [t for t in idle if not any(o[: len(t)] == t and o != t for o in idle)]
            assert text in ends, "pages go from the ends"
            assert self.released.get(text, 0) == min(self.released.get(t, 0) for t in ends)
            idle.remove(text)
            del self.pages[text]

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), spared=st.frozensets(st.integers(0, SLOTS - 1)))
    def keep(self, data: st.DataObject, spared: frozenset[int]) -> None:
        before = self.tree
        self.tree, slot = self.tree.take_slot(spared)
        usable = before.free & ~sum(1 << s for s in spared)
        oldest = [k.slot for k in sorted(before.states.values(), key=lambda k: k.used) if k.slot not in spared]
        if slot is None:
            assert not usable and not oldest
            return
        assert slot not in spared and (usable >> slot & 1 if usable else slot == oldest[0])
        if data.draw(st.booleans()):
            self.pending.append(slot)
            return
        text = data.draw(st.sampled_from(sorted(self.pages)))
        self.tree = self.tree.keep(text, slot)
        assert self.tree.resumable(self.tree.match(text)) == len(text)

    @precondition(lambda self: self.pending)
    @rule()
    def give(self) -> None:
        self.tree, self.pending = self.tree.give_slots(self.pending), []

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(sorted(self.pages)))
        self.tree = self.tree.forget(text)
        assert self.tree.resumable(self.tree.match(text)) < len(text)

    @invariant()
    def it_holds_what_it_should(self) -> None:
        assert every(self.tree.root) == self.pages
        assert self.tree.total == len(self.pages)
        assert self.tree.idle == sum(not self.wanted(t) for t in self.pages)
        slots = [k.slot for k in self.tree.states.values()] + self.pending
        assert len(set(slots)) == len(slots) and self.tree.free == (1 << SLOTS) - 1 - sum(1 << s for s in slots)
        assert set(self.tree.states) <= set(self.pages.values())
        for node in nodes(self.tree.root)[1:]:
            assert node.pages and len(node.pages) == len(node.keys)
            assert node.refs >= sum(child.refs for child in node.children.values())
            assert all(child.keys[0] == key for key, child in node.children.items())

    @invariant()
    def older_trees_are_as_they_were(self) -> None:
        self.history = [*self.history[-3:], (self.tree, every(self.tree.root))]
        assert all(every(tree.root) == pages for tree, pages in self.history)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestPrefix = Machine.TestCase


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 5))
def test_pages_are_whole(tokens: list[int], page: int) -> None:
    keys = paged(tokens, page)
    assert len(keys) == len(tokens) // page and [t for key in keys for t in key] == tokens[: len(keys) * page]


def test_a_text_that_grows_stays_one_node() -> None:
    tree = Prefix()
    keys = tuple((i,) for i in range(200))
    for n in range(1, 201):
        tree = tree.extend(keys[:n], n - 1, tuple(range(n)))
    assert len(nodes(tree.root)) == 2 and tree.match(keys) == tuple(range(200))
    tree = tree.release(keys).acquire(keys[:150])
    assert [len(n.pages) for n in nodes(tree.root)] == [0, 150, 50] and tree.idle == 50


def test_many_lengths_of_one_text_go_deep_without_recursion() -> None:
    keys = tuple((i,) for i in range(1500))
    tree = Prefix().insert(keys, tuple(range(1500)))
    for n in range(1, 1500):
        tree = tree.acquire(keys[:n]).release(keys[:n])
    assert tree.match(keys) == tuple(range(1500))
    tree, gone = tree.evict(1500)
    assert gone == tuple(reversed(range(1500))) and not tree.root.children
