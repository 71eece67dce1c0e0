"""The op table on a Queue: each method hands over to the launcher of the same name in the file of the same noun."""
from __future__ import annotations

from typing import TYPE_CHECKING

from blackwell_infer.device.queue import Queue
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.kv.spec import PagedKV
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch, DeltaParams, PenaltyState, Routing, Sampled, SampleParams, TokenState
from blackwell_infer.ops.cuda import (
    activation,
    arrange,
    attention,
    experts,
    linear,
    norm,
    quantize,
    quantized,
    recurrent,
    rope,
    route,
    sample,
)
from blackwell_infer.quant.format import Experts, Linear, Quantized, Weight
from blackwell_infer.types import Array


class CudaOps:
    """`ops.api.Ops` through kernels on one queue. With `reproducible` a row has the same bits whatever stands beside
    it, at any number of rows (see `EngineConfig.reproducible`); the queue must then offer no libraries."""

    def __init__(self, queue: Queue, reproducible: bool = False) -> None:
        self.queue, self.reproducible = queue, reproducible
        self._few = attention.MANY if reproducible else attention.FEW

    def arrange(self, w: Weight, out: Array | None = None) -> Weight:
        return arrange.arrange(self.queue, w, out)

    def embed(self, table: Weight, ids: Array, dtype: str) -> Array:
        return linear.embed(self.queue, table, ids, dtype)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        return norm.rms_norm(self.queue, x, weight, eps)

    def rms_norm_pair(self, a: Array, b: Array, weight_a: Array, weight_b: Array, eps: float) -> Array:
        return norm.rms_norm_pair(self.queue, a, b, weight_a, weight_b, eps)

    def add_rms_norm(self, x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array]:
        return norm.add_rms_norm(self.queue, x, residual, weight, eps)

    def linear(self, x: Array, w: Linear, bias: Array | None = None) -> Array:
        return linear.linear(self.queue, x, w, bias, self.reproducible)

    def logits(self, x: Array, w: Linear) -> Array:
        return linear.logits(self.queue, x, w, self.reproducible)

    def swiglu(self, gate_up: Array) -> Array:
        return activation.swiglu(self.queue, gate_up)

    def sigmoid_gate(self, x: Array, gates: Array) -> Array:
        return activation.sigmoid_gate(self.queue, x, gates)

    def add_gated(self, x: Array, y: Array, h: Array, gate: Array) -> Array:
        return activation.add_gated(self.queue, x, y, h, gate)

    def quantize(self, x: Array, form: str, inputs: Array | None = None) -> Quantized:
        return quantize.quantize(self.queue, x, form, inputs)

    def rms_norm_quantize(self, x: Array, weight: Array, eps: float, form: str,
                          inputs: Array | None = None) -> Quantized:
        return quantize.rms_norm_quantize(self.queue, x, weight, eps, form, inputs)

    def add_rms_norm_quantize(self, x: Array, residual: Array, weight: Array, eps: float, form: str,
                              inputs: Array | None = None) -> tuple[Array, Quantized]:
        return quantize.add_rms_norm_quantize(self.queue, x, residual, weight, eps, form, inputs)

    def swiglu_quantize(self, gate_up: Array, form: str, inputs: Array | None = None) -> Quantized:
        return quantize.swiglu_quantize(self.queue, gate_up, form, inputs)

    def linear_quantized(self, x: Quantized, w: Linear, dtype: str, bias: Array | None = None,
                         residual: Array | None = None) -> Array:
        return quantized.linear_quantized(self.queue, x, w, dtype, bias, residual)

    def route(self, x: Array, router: Linear, top: int, norm: bool, shared: bool = False) -> Routing:
        return route.route(self.queue, x, router, top, norm, shared, self.reproducible)

    def experts(self, x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Array:
        return experts.experts(self.queue, x, routing, gate_up, down, self.reproducible)

    def take_rows(self, x: Array, index: Array, out: Array | None = None) -> Array:
        return activation.take_rows(self.queue, x, index, out)

    def qkv_rope_append_(self, kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int,
                         q_norm: Array | None = None, k_norm: Array | None = None, eps: float = 0.0) -> Array:
        return rope.qkv_rope_append_(self.queue, kv, qkv, batch, rope_table, heads, q_norm, k_norm, eps)

    def attend(self, q: Array, kv: PagedKV, batch: Batch, scale: float, window: int, softcap: float = 0.0) -> Array:
        return attention.attend(self.queue, q, kv, batch, scale, window, softcap, self._few)

    def attention_(self, kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int, scale: float,
                   window: int, softcap: float = 0.0, q_norm: Array | None = None, k_norm: Array | None = None,
                   eps: float = 0.0) -> Array:
        return attention.attention_(self.queue, kv, qkv, batch, rope_table, heads, scale, window, softcap, q_norm,
                                    k_norm, eps, self._few)

    def gated_delta_(self, state: Recurrent, proj: Array, batch: Batch, params: DeltaParams) -> Array:
        return recurrent.gated_delta_(self.queue, state, proj, batch, params, self._few)

    def sample_(self, state: PenaltyState, logits: Array, params: SampleParams) -> Sampled:
        return sample.sample_(self.queue, state, logits, params)

    def penalty_load_(self, state: PenaltyState, slot: int, prompt: Array, answer: Array) -> None:
        sample.penalty_load_(self.queue, state, slot, prompt, answer)

    def newest_tokens(self, newest: Array, ids: Array) -> Array:
        return sample.newest_tokens(self.queue, newest, ids)

    def deliver_(self, state: TokenState, sampled: Sampled, slots: Array) -> None:
        sample.deliver_(self.queue, state, sampled, slots)

    def token_logprobs(self, logits: Array, targets: Array) -> Array:
        return sample.token_logprobs(self.queue, logits, targets)


if TYPE_CHECKING:
    def _conforms(queue: Queue) -> Ops:
        return CudaOps(queue)
