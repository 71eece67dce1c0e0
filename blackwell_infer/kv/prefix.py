"""Pages that outlive their sequence: a radix tree over whole pages of tokens, as a value.

A node is a run of pages that no other text of the tree shares with only a part; its children go on differently. `refs`
counts who holds a node: whoever holds one holds those above it. Nodes that nobody holds are idle: their pages stay
until room is needed, and go from the ends, least recently released first. Every change gives a new tree and leaves the
old as it was.

Models with recurrent layers can only resume where a state was kept: `states` says at the end of which pages that is,
and in which of the slots set apart for it.
"""
from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Items
from typing import Self

import msgspec

Key = tuple[int, ...]
"""The tokens of one page"""


class Node(msgspec.Struct, frozen=True):
    """A run of pages and their tokens; `used` is when somebody let go of it last. Children go by their first page."""

    keys: tuple[Key, ...] = ()
    pages: tuple[int, ...] = ()
    refs: int = 0
    used: int = 0
    children: Mapping[Key, Node] = {}


class Kept(msgspec.Struct, frozen=True):
    """The slot of a recurrent state, and when it was of use last."""

    slot: int
    used: int


class Prefix(msgspec.Struct, frozen=True):
    """The tree under `root`, which has no pages. `total` pages are in it, of which nobody holds `idle`.

    `free` has bit s set if slot s for recurrent states is unused; `states` go by the page after which they hold.
    """

    root: Node = Node()
    clock: int = 0
    total: int = 0
    idle: int = 0
    free: int = 0
    states: Mapping[int, Kept] = {}

    def match(self, keys: Items[Key]) -> tuple[int, ...]:
        """Pages of the longest beginning of `keys` that is in the tree."""
        path, inside = descend(self.root, keys)
        return tuple(p for node in path[:-1] for p in node.pages) + path[-1].pages[:inside]

    def acquire(self, keys: Items[Key]) -> Self:
        """Hold `keys`, all of which are in the tree."""
        if not keys:
            return self
        path, inside = descend(self.root, keys)
        path[-1] = split(path[-1], inside)
        return msgspec.structs.replace(
            self, root=chained([self.root, *map(held, path[1:])]), idle=self.idle - idle_pages(path))

    def extend(self, keys: Items[Key], had: int, pages: Items[int]) -> Self:
        """Whoever holds the first `had` of `keys` comes to hold them all. `pages` [keys] hold them; those that the tree
        has already it keeps, and leaves the other copies to the caller."""
        path, inside = descend(self.root, keys)
        path[-1] = split(path[-1], inside)
        nodes, at, woken = path[:1], 0, 0
        for node in path[1:]:
            woken += len(node.pages) if at >= had and not node.refs else 0
            nodes.append(held(node) if at >= had else node)
            at += len(node.pages)
        fresh = Node(tuple(keys[at:]), tuple(pages[at:]), 1)
        last = nodes[-1]
        if fresh.pages and last.pages and last.refs == 1 and not last.children:  # nobody else's: it grows
            nodes[-1] = msgspec.structs.replace(last, keys=last.keys + fresh.keys, pages=last.pages + fresh.pages)
        elif fresh.pages:
            nodes.append(fresh)
        return msgspec.structs.replace(
            self, root=chained(nodes), idle=self.idle - woken, total=self.total + len(fresh.pages))

    def release(self, keys: Items[Key]) -> Self:
        """Let go of `keys`, as far as `acquire` and `extend` came."""
        if not keys:
            return self
        path, _ = descend(self.root, keys)
        clock = self.clock + 1
        nodes = [msgspec.structs.replace(node, refs=node.refs - 1, used=clock) for node in path[1:]]
        return msgspec.structs.replace(
            self, root=chained([self.root, *nodes]), clock=clock, idle=self.idle + idle_pages(nodes))

    def insert(self, keys: Items[Key], pages: Items[int]) -> Self:
        """Add pages that nobody holds; see `extend` for those that are there already."""
        return self.extend(keys, 0, pages).release(keys)

    def evict(self, count: int) -> tuple[Self, tuple[int, ...]]:
        """A tree without the `count` idle pages that matter least, or without any idle page, and those pages."""
        flat: list[tuple[Node, int, Key]] = [(self.root, -1, ())]  # (node, index of the one above, key in there)
        for at, (node, _, _) in enumerate(flat):
            flat += [(child, at, key) for key, child in node.children.items()]
        ends = [(node.used, at) for at, (node, _, _) in enumerate(flat) if at and not node.refs and not node.children]
        heapq.heapify(ends)
        children = [len(node.children) for node, _, _ in flat]
        news, gone = dict[int, Node | None](), list[int]()
        while ends and len(gone) < count:
            _, at = heapq.heappop(ends)
            node, above, _ = flat[at]
            left = max(len(node.pages) - (count - len(gone)), 0)
            gone += reversed(node.pages[left:])
            news[at] = msgspec.structs.replace(node, keys=node.keys[:left], pages=node.pages[:left]) if left else None
            children[above] -= not left
            if above and not children[above] and not flat[above][0].refs:
                heapq.heappush(ends, (flat[above][0].used, above))
        root = renewed(flat, news)
        lost = {page: self.states[page] for page in gone if page in self.states}
        return msgspec.structs.replace(
            self, root=root, total=self.total - len(gone), idle=self.idle - len(gone),
            free=self.free | sum(1 << kept.slot for kept in lost.values()),
            states={page: kept for page, kept in self.states.items() if page not in lost} if lost else self.states,
        ), tuple(gone)

    def resumable(self, pages: Items[int]) -> int:
        """How many of `pages`, which `match` gave, lie before the last kept state."""
        return next((i for i in range(len(pages), 0, -1) if pages[i - 1] in self.states), 0)

    def touch(self, page: int) -> Self:
        """The state after this page was of use."""
        kept = Kept(self.states[page].slot, self.clock + 1)
        return msgspec.structs.replace(self, clock=kept.used, states={**self.states, page: kept})

    def take_slot(self, spared: Collection[int]) -> tuple[Self, int | None]:
        """A slot for a state, none of `spared`: a free one, else that of the state of least use."""
        free = self.free & ~sum(1 << slot for slot in {*spared} if slot >= 0)
        if free:
            low = free & -free
            return msgspec.structs.replace(self, free=self.free ^ low), low.bit_length() - 1
        found = [(kept.used, page, kept.slot) for page, kept in self.states.items() if kept.slot not in spared]
        if not found:
            return self, None
        _, page, slot = min(found)
        return msgspec.structs.replace(self, states={p: k for p, k in self.states.items() if p != page}), slot

    def give_slots(self, slots: Collection[int]) -> Self:
        """Slots that hold nothing of worth."""
        return msgspec.structs.replace(self, free=self.free | sum(1 << slot for slot in slots)) if slots else self

    def keep(self, keys: Items[Key], slot: int) -> Self:
        """`slot` holds the state after `keys`, which are in the tree. It is given back if there is one already."""
        page = self.match(keys)[-1]
        if page in self.states:
            return self.give_slots((slot,)).touch(page)
        clock = self.clock + 1
        return msgspec.structs.replace(self, clock=clock, states={**self.states, page: Kept(slot, clock)})

    def forget(self, keys: Items[Key]) -> Self:
        """The state after `keys` is worth no slot any more, if there is one."""
        page = self.match(keys)[-1]
        if page not in self.states:
            return self
        states = {p: k for p, k in self.states.items() if p != page}
        return msgspec.structs.replace(self, states=states).give_slots((self.states[page].slot,))


def paged(tokens: Items[int], page: int) -> tuple[Key, ...]:
    """The whole pages of `page` tokens."""
    return tuple(tuple(tokens[i : i + page]) for i in range(0, len(tokens) - page + 1, page))


def descend(root: Node, keys: Items[Key]) -> tuple[list[Node], int]:
    """Nodes from the root to that in which the longest match of `keys` ends, and how many pages of that one match."""
    path, at, inside = [root], 0, 0
    while at < len(keys):
        child = path[-1].children.get(keys[at])
        if child is None:
            break
        inside = common(child.keys, keys[at : at + len(child.keys)])
        path.append(child)
        at += inside
        if inside < len(child.keys):
            break
    return path, inside


def common(a: Items[Key], b: Items[Key]) -> int:
    """How many keys are equal from the start."""
    if tuple(a) == tuple(b):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def split(node: Node, count: int) -> Node:
    """The node cut after `count` of its pages: the rest becomes its child."""
    if count == len(node.pages):
        return node
    rest = Node(node.keys[count:], node.pages[count:], node.refs, node.used, node.children)
    return Node(node.keys[:count], node.pages[:count], node.refs, node.used, {node.keys[count]: rest})


def held(node: Node) -> Node:
    return msgspec.structs.replace(node, refs=node.refs + 1)


def idle_pages(nodes: Items[Node]) -> int:
    """Pages of nodes that nobody holds."""
    return sum(len(node.pages) for node in nodes if not node.refs)


def chained(nodes: Items[Node]) -> Node:
    """The first of nodes, each of which becomes a child of the one before."""
    below = nodes[-1]
    for node in reversed(nodes[:-1]):
        below = msgspec.structs.replace(node, children={**node.children, below.keys[0]: below})
    return below


def renewed(flat: Items[tuple[Node, int, Key]], news: dict[int, Node | None]) -> Node:
    """The root of a tree, given as (node, index of the one above, key in there) from the root down, with other nodes in
    some places, or none."""
    below: dict[int, dict[Key, Node | None]] = {}
    for at in range(len(flat) - 1, -1, -1):
        node, above, key = flat[at]
        base = news.get(at, node)
        if at in below and base is not None:
            changed = below[at]
            base = news[at] = msgspec.structs.replace(base, children={
                k: new for k, old in base.children.items() if (new := changed.get(k, old)) is not None})
        if at in news:
            below.setdefault(above, {})[key] = base
    return news.get(0) or flat[0][0]
