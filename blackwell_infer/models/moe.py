"""Sparse MLPs: a router sends every token to a few of a layer's experts, and some models beside to one that all share.
Layers may have different numbers of experts.

Pruned checkpoints list experts per layer under several names; the rows of a layer's router in the file decide, and a
configuration that disagrees with them is refused.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from blackwell_infer.errors import CheckpointError
from blackwell_infer.models.spec import Take
from blackwell_infer.ops.api import Ops
from blackwell_infer.quant.format import Experts, Linear
from blackwell_infer.types import Array

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Size = Annotated[int, msgspec.Meta(gt=0, le=1 << 31)]
PER_LAYER = ("num_experts_per_layer", "per_layer_num_experts", "remaining_experts_by_layer", "per_layer_config",
             "num_experts", "num_local_experts")
"""Fields that may list experts per layer; the last two are a number in models that were not pruned."""


class Spelling(msgspec.Struct, frozen=True):
    """Where the tensors of a sparse MLP stand below a layer, and what an expert's projections are called."""

    prefix: str
    gate: str
    up: str
    down: str


SPELLINGS = (Spelling("mlp.", "gate_proj", "up_proj", "down_proj"), Spelling("block_sparse_moe.", "w1", "w3", "w2"))


class LayerFields(msgspec.Struct, frozen=True):
    """What `per_layer_config` may say of a layer."""

    num_experts: Count | None = None


class MoeFields(msgspec.Struct, frozen=True):
    """The fields of config.json about experts."""

    num_experts_per_tok: Size
    num_experts: Count | list[Count] | None = None
    num_local_experts: Count | list[Count] | None = None
    num_experts_per_layer: list[Count] | dict[str, Count] | None = None
    per_layer_num_experts: list[Count] | dict[str, Count] | None = None
    remaining_experts_by_layer: list[Count] | dict[str, Count] | None = None
    per_layer_config: dict[str, LayerFields] | None = None
    moe_intermediate_size: Size | None = None
    shared_expert_intermediate_size: Count = 0
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[Count] | None = None


class MoeConfig(msgspec.Struct, frozen=True):
    """Experts of every layer: `counts` is 0 where the MLP is dense; where not `exact`, it is the most there may be.

    A token goes to `top` experts, or to all of a layer that has fewer. `norm`: their weights are made to add up to 1.
    """

    counts: tuple[int, ...]
    exact: tuple[bool, ...]
    top: int
    inner: int
    norm: bool
    shared: int = 0
    """width of the expert that all tokens share, 0 for none"""


class SharedExpert(msgspec.Struct, frozen=True):
    """The MLP that every token goes through; sigmoid of gate [H] float32 times the hidden state says how much it
    counts."""

    gate_up: Linear
    down: Linear
    gate: Array


class SparseMlp(msgspec.Struct, frozen=True):
    """The experts of one layer and their router [E, H]. With `joined` the last expert is one that all tokens share, and
    the router has a row for it; else that one, if there is any, stands beside."""

    router: Linear
    gate_up: tuple[Experts, ...]
    down: Experts
    top: int
    norm: bool
    joined: bool = False
    shared: SharedExpert | None = None


def read_moe(config: Mapping[str, Any]) -> MoeFields:
    """Decode and check the fields about experts; CheckpointError names the one that is wrong."""
    try:
        return msgspec.convert(dict(config), MoeFields)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config field: {error}".replace("`$.", "`")) from error


def moe_config(fields: MoeFields, layers: int, inner: int, norm: bool) -> MoeConfig:
    """The experts of `layers` layers. CheckpointError: no number of experts, or lists that contradict each other."""
    dense = set(fields.mlp_only_layers or ())
    sparse = [i for i in range(layers) if i not in dense and (i + 1) % fields.decoder_sparse_step == 0]
    most = [n for n in (fields.num_experts, fields.num_local_experts) if isinstance(n, int)]
    if len(set(most)) > 1:
        raise CheckpointError(f"config fields num_experts and num_local_experts differ: {most[0]} and {most[1]}")
    if most == [0]:
        sparse = []
    listed = listed_counts(fields, layers, sparse)
    missing = [i for i in sparse if i not in listed]
    if missing and not most:
        raise CheckpointError("config field num_experts is missing, and no list gives the experts of layer "
                              f"{missing[0]}")
    counts = {i: listed.get(i, most[0] if most else 0) for i in sparse}
    empty = [i for i, count in counts.items() if not count]
    if empty:
        raise CheckpointError(f"config: layer {empty[0]} has a router and no experts")
    return MoeConfig(counts=tuple(counts.get(i, 0) for i in range(layers)),
                     exact=tuple(i in listed and i in counts for i in range(layers)),
                     top=fields.num_experts_per_tok, inner=inner, norm=norm)


def listed_counts(fields: MoeFields, layers: int, sparse: list[int]) -> dict[int, int]:
    """Experts of each sparse layer for which a field lists them. A list has an entry per layer, or per sparse layer."""
    found: dict[int, tuple[str, int]] = {}
    for name in PER_LAYER:
        for i, count in entries(name, msgspec.structs.asdict(fields)[name], layers, sparse):
            if i in sparse and found.setdefault(i, (name, count))[1] != count:
                raise CheckpointError(f"config fields {found[i][0]} and {name} differ for layer {i}: {found[i][1]} and "
                                      f"{count} experts")
    return {i: count for i, (_, count) in found.items()}


def entries(name: str, value: Any, layers: int, sparse: list[int]) -> list[tuple[int, int]]:
    """(layer, experts) of a field's list or mapping, none of a plain number."""
    if isinstance(value, list):
        if len(value) not in (layers, len(sparse)):
            raise CheckpointError(f"config field {name} has {len(value)} entries for {layers} layers")
        return list(zip(range(layers) if len(value) == layers else sparse, value, strict=True))
    if not isinstance(value, dict):
        return []
    pairs = []
    for key, entry in value.items():
        if not key.isdecimal() or int(key) >= layers:
            raise CheckpointError(f"config field {name} has the key {key!r}, no number of one of {layers} layers")
        count = entry.num_experts if isinstance(entry, LayerFields) else entry
        if count is not None:
            pairs.append((int(key), count))
    return pairs


def build_sparse(cfg: MoeConfig, take: Take, base: str, layer: int, hidden: int) -> SparseMlp:
    """Ask for the experts of a layer below `base`, however they are spelled and stacked."""
    spelling = next((s for s in SPELLINGS if take.has(f"{base}{s.prefix}gate.weight")), SPELLINGS[0])
    router, experts = f"{base}{spelling.prefix}gate.weight", f"{base}{spelling.prefix}experts."
    shape = take.shape(router)
    count = shape[0] if shape else cfg.counts[layer]
    if count > cfg.counts[layer] or (cfg.exact[layer] and count != cfg.counts[layer]):
        most = "" if cfg.exact[layer] else "at most "
        raise CheckpointError(f"tensor {router} has {count} rows, the configuration gives layer {layer} {most}"
                              f"{cfg.counts[layer]} experts")
    top, n = min(cfg.top, count), cfg.inner

    def block(name: str) -> str:
        """One tensor of all experts, or one of each."""
        return experts + name if take.has(experts + name) else f"{experts}{{}}.{name}.weight"

    fused = f"{experts}gate_up_proj"
    into = [fused] if take.has(fused) else [block(spelling.gate), block(spelling.up)]
    down = block("down_proj" if take.has(f"{experts}down_proj") else spelling.down)
    own = f"{base}{spelling.prefix}shared_expert"
    gate, up, out, says = (f"{own}{x}.weight" for x in (".gate_proj", ".up_proj", ".down_proj", "_gate"))
    rows = 2 * n // len(into)
    blocks = [name.replace("{}", "0") for name in (*into, down)]
    if cfg.shared == n and take.joins([[router, says], [blocks[0], gate], [blocks[-2], up], [blocks[-1], out]]):
        return SparseMlp(router=take.linear([router, says], [(count, hidden), (1, hidden)]),
                         gate_up=take.experts(into, count, top, (rows, hidden), [gate, up]),
                         down=take.experts([down], count, top, (hidden, n), [out])[0], top=top, norm=cfg.norm,
                         joined=True)
    return SparseMlp(router=take.linear([router], [(count, hidden)]),
                     gate_up=take.experts(into, count, top, (rows, hidden)),
                     down=take.experts([down], count, top, (hidden, n))[0], top=top, norm=cfg.norm,
                     shared=build_shared(take, f"{base}{spelling.prefix}", cfg.shared, hidden) if cfg.shared else None)


def build_shared(take: Take, base: str, inner: int, hidden: int) -> SharedExpert:
    """Ask for the expert that all tokens share."""
    expert, name = base + "shared_expert.", base + "shared_expert_gate.weight"
    gate = take.host(name)
    if gate is None or gate.shape != (1, hidden):
        found = "is missing" if gate is None else f"has shape {list(gate.shape)}"
        raise CheckpointError(f"tensor {name} {found}; the configuration asks for {[1, hidden]}")
    return SharedExpert(
        gate_up=take.linear([f"{expert}{x}_proj.weight" for x in ("gate", "up")], [(inner, hidden)] * 2),
        down=take.linear([f"{expert}down_proj.weight"], [(hidden, inner)]),
        gate=take.constant(name, gate.reshape(hidden)))


def sparse_mlp(ops: Ops, p: SparseMlp, h: Array) -> Array:
    """The MLP of normed hidden states [T, H]."""
    routed = ops.experts(h, ops.route(h, p.router, p.top, p.norm, p.joined), p.gate_up, p.down)
    if p.shared is None:
        return routed
    shared = ops.linear(ops.swiglu(ops.linear(h, p.shared.gate_up)), p.shared.down)
    return ops.add_gated(routed, shared, h, p.shared.gate)
