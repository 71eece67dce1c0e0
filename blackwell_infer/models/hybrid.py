"""The decoder of Qwen3.5: recurrent layers with gated attention between them, MLPs dense or sparse, and a head that
guesses the token after the next.

Norms multiply by 1 + what a Hugging Face folder stores (all but the one inside recurrent layers); parameters hold the
sum. A query projection is stored with queries and gates head by head; `GatedAttention.into` has them apart.
"""
from __future__ import annotations

from collections.abc import Iterator

import msgspec

from blackwell_infer.errors import CheckpointError
from blackwell_infer.kv.recurrent import RecurrentSpec
from blackwell_infer.kv.spec import CacheSpec, KVState, PagedKV
from blackwell_infer.models import fused
from blackwell_infer.models.layers import DenseMlp, feed_forward
from blackwell_infer.models.moe import MoeConfig, SparseMlp, build_sparse
from blackwell_infer.models.recurrent import DeltaMixer, build_delta, delta_mixer
from blackwell_infer.models.rope import Rope, frequencies, rope_table
from blackwell_infer.models.spec import Draft, Geometry, Rows, Take
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch
from blackwell_infer.quant.format import Linear, Quantized, Weight
from blackwell_infer.types import Array

PREFIXES = ("model.", "model.language_model.")
"""What tensor names begin with: of text models, and of those that also see"""
MTP = "mtp."
"""Where the tensors of the head for guesses stand"""
MTP_OWN = ("fc.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight")
MTP_SHARED = ("embed_tokens.weight", "lm_head.weight")
"""What a head has only where it differs from the model's"""
MTP_LAYER = ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
             "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm")


class HybridConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`recurrent` says of each layer whether it is one; without `moe` every MLP is dense, `inner` wide."""

    vocab: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int
    eps: float
    rope: Rope
    tied: bool
    recurrent: tuple[bool, ...]
    delta: RecurrentSpec
    tiled: bool
    """value heads of recurrent layers lie in the order of GGUF files"""
    plus: float
    """what stored norm weights lack: 1, or 0 where the file holds the sum (GGUF)"""
    moe: MoeConfig | None = None

    @property
    def cache(self) -> CacheSpec:
        return CacheSpec(kv_heads=self.kv_heads, head_dim=self.head_dim, format="")


class GatedAttention(msgspec.Struct, frozen=True):
    """`into` makes q, k, v and the gates of a hidden state, side by side: (heads + 2 kv_heads + heads) D rows."""

    into: Linear
    q_norm: Array
    k_norm: Array
    out: Linear


class HybridLayer(msgspec.Struct, frozen=True):
    """The norm before the mixer, the mixer, the norm before the MLP, the MLP."""

    mixer_norm: Array
    mixer: GatedAttention | DeltaMixer
    mlp_norm: Array
    mlp: DenseMlp | SparseMlp


class HybridParams(msgspec.Struct, frozen=True):
    """All parameters of the model itself. With tied embeddings `head` is made of the same tensor as `embed`."""

    embed: Weight
    rope: Array
    layers: tuple[HybridLayer, ...]
    norm: Array
    head: Linear


class DraftParams(msgspec.Struct, frozen=True):
    """The head for guesses: `fc` [H, 2 H] takes the normed embedding and the normed hidden state, side by side. Few
    heads have embeddings (None) and an output projection (none) other than the model's."""

    embedding_norm: Array
    hidden_norm: Array
    fc: Linear
    layer: HybridLayer
    norm: Array
    embed: Weight | None
    out: Linear


def geometry(cfg: HybridConfig) -> Geometry:
    recurrent = sum(cfg.recurrent)
    return Geometry(vocab=cfg.vocab, hidden=cfg.hidden, max_context=cfg.max_context,
                    cache=(cfg.cache,) * (len(cfg.recurrent) - recurrent), recurrent=(cfg.delta,) * recurrent)


def build(cfg: HybridConfig, take: Take, max_context: int) -> HybridParams:
    """Ask `take` for every parameter; the rope table covers `max_context` positions."""
    prefix = next((p for p in reversed(PREFIXES) if take.has(p + "embed_tokens.weight")), PREFIXES[0])
    embedding, head, shape = prefix + "embed_tokens.weight", "lm_head.weight", (cfg.vocab, cfg.hidden)
    angles = frequencies(cfg.rope, None)
    return HybridParams(
        embed=take.table(embedding, shape),
        rope=take.computed("rope", (max_context, 2, len(angles)), lambda: rope_table(angles, max_context)),
        layers=tuple(build_layer(cfg, take, f"{prefix}layers.{i}.", i, recurrent)
                     for i, recurrent in enumerate(cfg.recurrent)),
        norm=take.vector(prefix + "norm.weight", cfg.hidden, cfg.plus),
        head=take.linear([embedding if cfg.tied and not take.has(head) else head], [shape]))


def build_layer(cfg: HybridConfig, take: Take, base: str, i: int, recurrent: bool) -> HybridLayer:
    """The layer whose tensors stand below `base`; `i` is its number, as far as its MLP depends on it."""
    mixer = (build_delta(cfg.delta, take, base + "linear_attn.", cfg.hidden, cfg.eps, cfg.tiled) if recurrent
             else build_attention(cfg, take, base + "self_attn."))
    h, n = cfg.hidden, cfg.inner
    return HybridLayer(
        mixer_norm=take.vector(base + "input_layernorm.weight", h, cfg.plus), mixer=mixer,
        mlp_norm=take.vector(base + "post_attention_layernorm.weight", h, cfg.plus),
        mlp=build_sparse(cfg.moe, take, base, i, h) if cfg.moe is not None else DenseMlp(
            gate_up=take.linear([f"{base}mlp.{x}_proj.weight" for x in ("gate", "up")], [(n, h)] * 2),
            gate_up_bias=None, down=take.linear([base + "mlp.down_proj.weight"], [(h, n)]), down_bias=None))


def build_attention(cfg: HybridConfig, take: Take, base: str) -> GatedAttention:
    d, q, kv, h = cfg.head_dim, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim, cfg.hidden
    return GatedAttention(
        into=take.linear([f"{base}{x}_proj.weight" for x in ("q", "k", "v", "q")],
                         [(2 * q, h), (kv, h), (kv, h), (2 * q, h)],
                         [Rows(2 * d, 0, d), None, None, Rows(2 * d, d, d)]),
        q_norm=take.vector(base + "q_norm.weight", d, cfg.plus),
        k_norm=take.vector(base + "k_norm.weight", d, cfg.plus),
        out=take.linear([base + "o_proj.weight"], [(h, q)]))


def build_draft(cfg: HybridConfig, take: Take) -> DraftParams | None:
    """The head for guesses. CheckpointError names what is missing where only a part is there."""
    base = MTP + "layers.0."
    names = [MTP + name for name in MTP_OWN] + [f"{base}{name}.weight" for name in MTP_LAYER]
    missing = [name for name in names if not take.has(name)]
    if len(missing) == len(names):
        return None
    if missing:
        present = next(name for name in names if name not in missing)
        raise CheckpointError(f"tensor {missing[0]} is missing, while {present} is there: the head for multi-token "
                              "prediction is incomplete; take a checkpoint with all of it or with none")
    h, last, own = cfg.hidden, len(cfg.recurrent) - 1, [MTP + name for name in MTP_SHARED]
    embedding, out = (name if take.has(name) else "" for name in own)
    return DraftParams(
        embedding_norm=take.vector(MTP + "pre_fc_norm_embedding.weight", h, cfg.plus),
        hidden_norm=take.vector(MTP + "pre_fc_norm_hidden.weight", h, cfg.plus),
        fc=take.linear([MTP + "fc.weight"], [(h, 2 * h)]),
        layer=build_layer(widest(cfg), take, base, last, False), norm=take.vector(MTP + "norm.weight", h, cfg.plus),
        embed=take.table(embedding, (cfg.vocab, h)) if embedding else None,
        out=take.linear([out], [(cfg.vocab, h)]) if out else ())


def widest(cfg: HybridConfig) -> HybridConfig:
    """For the layer of the head, which pruning may have left as it was: any number of experts up to the most."""
    if cfg.moe is None:
        return cfg
    counts = (max(cfg.moe.counts),) * len(cfg.moe.counts)
    moe = msgspec.structs.replace(cfg.moe, counts=counts, exact=(False,) * len(counts))
    return msgspec.structs.replace(cfg, moe=moe)


def forward(ops: Ops, cfg: HybridConfig, params: HybridParams, state: KVState, batch: Batch, dtype: str) -> Array:
    """Hidden states [T, H] after the final norm; keys, values and recurrent states of the batch go to `state`."""
    *_, last = hidden_states(ops, cfg, params, state, batch, dtype)
    return last


def hidden_states(ops: Ops, cfg: HybridConfig, params: HybridParams, state: KVState, batch: Batch,
                  dtype: str) -> Iterator[Array]:
    """Embeddings, the residual sum after each layer but the last, and what `forward` returns."""
    residual = ops.embed(params.embed, batch.ids, dtype)
    first = params.layers[0]
    h = fused.rms_norm(ops, residual, first.mixer_norm, cfg.eps, first.mixer.into)
    after = (*((p.mixer_norm, p.mixer.into) for p in params.layers[1:]), (params.norm, ()))
    caches, states = iter(state.layers), iter(state.recurrent)
    for p, (norm, following) in zip(params.layers, after, strict=True):
        yield residual
        if isinstance(p.mixer, DeltaMixer):
            x = delta_mixer(ops, p.mixer, next(states), h, batch, dtype)
        else:
            x = gated_attention(ops, cfg, p.mixer, next(caches), h, batch, params.rope, dtype)
        x, residual = feed_forward(ops, p.mlp, p.mlp_norm, x, residual, cfg.eps, dtype)
        residual, h = fused.add_rms_norm(ops, x, residual, norm, cfg.eps, following)
    yield plain(h)


def plain(h: Array | Quantized) -> Array:
    """What a norm made for a projection that takes it as it is."""
    assert not isinstance(h, Quantized)
    return h


def gated_attention(ops: Ops, cfg: HybridConfig, p: GatedAttention, kv: PagedKV, h: Array | Quantized, batch: Batch,
                    rope: Array, dtype: str) -> Array:
    """Attention whose result is gated, of normed hidden states [T, H]."""
    made = fused.linear(ops, h, p.into, None, dtype)  # q, k, v, gates
    x = ops.attention_(kv, made, batch, rope, cfg.heads, cfg.head_dim**-0.5, 0, q_norm=p.q_norm, k_norm=p.k_norm,
                       eps=cfg.eps)
    return ops.linear(ops.sigmoid_gate(x, made), p.out)


def logits(ops: Ops, cfg: HybridConfig, params: HybridParams, hidden: Array) -> Array:
    """Float32 logits [N, V] of hidden states [N, H]."""
    return ops.logits(hidden, params.head)


def draft(ops: Ops, cfg: HybridConfig, params: HybridParams, head: DraftParams, kv: PagedKV, batch: Batch,
          hidden: Array, dtype: str) -> Array:
    """See `models.spec.Draft.forward`."""
    p = head.layer
    assert isinstance(p.mixer, GatedAttention)
    embedded = ops.embed(params.embed if head.embed is None else head.embed, batch.ids, dtype)
    both = ops.rms_norm_pair(embedded, hidden, head.embedding_norm, head.hidden_norm, cfg.eps)
    residual = ops.linear(both, head.fc)
    h = fused.rms_norm(ops, residual, p.mixer_norm, cfg.eps, p.mixer.into)
    x = gated_attention(ops, cfg, p.mixer, kv, h, batch, params.rope, dtype)
    x, residual = feed_forward(ops, p.mlp, p.mlp_norm, x, residual, cfg.eps, dtype)
    _, y = ops.add_rms_norm(x, residual, head.norm, cfg.eps)
    return y


def draft_logits(ops: Ops, cfg: HybridConfig, params: HybridParams, head: DraftParams, hidden: Array) -> Array:
    """See `models.spec.Draft.logits`."""
    return ops.logits(hidden, head.out or params.head)


DRAFT = Draft(cache=lambda cfg: cfg.cache, build=build_draft, forward=draft, logits=draft_logits)
