"""The op table that models and the engine are written against: signatures, shapes, and what each op means.

Ops are pure unless the name ends in an underscore; those write to the handle passed first. Activations x have one dtype
per model (float32, float16 or bfloat16); every op computes in float32 and rounds once, to that dtype, at its end.
`ops.ref` is the specification in NumPy, `ops.cuda` launches kernels; `ops.cases` holds inputs and tolerances.
Law: the result of a row never depends on the rows beside it for matmuls of up to 16 rows and for every other op.
"""
from __future__ import annotations

from typing import Protocol

from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.kv.spec import PagedKV
from blackwell_infer.ops.batch import Batch, DeltaParams, PenaltyState, Routing, Sampled, SampleParams, TokenState
from blackwell_infer.quant.format import Experts, Linear, Quantized, Weight
from blackwell_infer.types import Array


class Ops(Protocol):
    """One implementation of every op. Activation dtype follows the inputs; `embed` takes it explicitly."""

    def arrange(self, w: Weight, out: Array | None = None) -> Weight:
        """w in the order in which the small matmuls of a GPU read it (quant/fragments.py); a format that has none stays
        as it is. Every op takes either, for 16-bit activations; of experts, if the rows of a matrix (gate and up: each)
        are a multiple of 16. `out` uint8 [bytes]: memory for the result, of a format that has the order."""
        ...

    def embed(self, table: Weight, ids: Array, dtype: str) -> Array:
        """Rows of `table` [V, H] at ids [T] int32 -> [T, H] of dtype ("float32", "float16", "bfloat16").

        An id outside [0, V) gives a row of zeros (the engine refuses such ids earlier).
        """
        ...

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """x / sqrt(mean(x^2) + eps) * weight; x [T, H], weight [H] float32. NaN and Inf propagate within their row."""
        ...

    def add_rms_norm(self, x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array]:
        """s = round(x + residual); returns (s, rms_norm(s)). Both [T, H]."""
        ...

    def rms_norm_pair(self, a: Array, b: Array, weight_a: Array, weight_b: Array, eps: float) -> Array:
        """rms_norm(a) and rms_norm(b) side by side: a, b [T, H] -> [T, 2 H]."""
        ...

    def linear(self, x: Array, w: Linear, bias: Array | None = None) -> Array:
        """x [T, K] times the transpose of each row block of w, outputs side by side -> [T, sum of rows].

        bias [sum of rows] float32. For a row block in a format of `quant.tiled.QUANTISES` x is quantised first, to the
        format that goes with it and under the input scale that the block holds: `linear_quantized` of `quantize`.
        """
        ...

    def logits(self, x: Array, w: Linear) -> Array:
        """Like `linear`, but returns float32 [N, V] without the final rounding."""
        ...

    def quantize(self, x: Array, form: str, inputs: Array | None = None) -> Quantized:
        """x [T, K] in small codes, for `linear_quantized`. Lossy: only where the user asks for it.

        form: "nvfp4" (K a multiple of 64), "mxfp8" (of 32), "fp8" (any K), "fp8_block" (any K). All arithmetic is
        float32, one rounding per operation, so that every backend gives the same bits; L is the largest magnitude of a
        group (of a row for "fp8"). Codes are rounded to nearest even and saturate.
        nvfp4: g = inputs[0] if above 0, else 1; scale = E4M3(L / 6 / g), code = E2M1(x * (1 / (scale * g))).
        mxfp8: scale = the smallest power of two >= L / 448; code = E4M3(x / scale). fp8: factor = inputs[0] if above 0,
        else L / 448; code = E4M3(x * (1 / factor)). fp8_block: the same per 128 elements, without inputs.
        Scales below 2^-126 count as 0 and give zero codes. A group (row) that holds a NaN or an infinity gets the scale
        NaN and zero codes. KernelError: another form, or a K that does not fit.
        """
        ...

    def rms_norm_quantize(self, x: Array, weight: Array, eps: float, form: str,
                          inputs: Array | None = None) -> Quantized:
        """`quantize` of `rms_norm`; form "nvfp4", "mxfp8" or "fp8_block"."""
        ...

    def add_rms_norm_quantize(self, x: Array, residual: Array, weight: Array, eps: float, form: str,
                              inputs: Array | None = None) -> tuple[Array, Quantized]:
        """`add_rms_norm` with its second result quantised; form "nvfp4", "mxfp8" or "fp8_block"."""
        ...

    def swiglu_quantize(self, gate_up: Array, form: str, inputs: Array | None = None) -> Quantized:
        """`quantize` of `swiglu`; form "nvfp4", "mxfp8" or "fp8_block"."""
        ...

    def linear_quantized(self, x: Quantized, w: Linear, dtype: str, bias: Array | None = None,
                         residual: Array | None = None) -> Array:
        """Like `linear`, on quantised activations: W4A4 and W8A8. Returns [T, sum of rows] of dtype.

        Formats of x and w belong together: "nvfp4" with "nvfp4_tiled", "mxfp8" with "mxfp8_tiled", "fp8" with
        "fp8_w8a8", "fp8_block" with "fp8_block_w8a8" (quant/tiled.py, `paired`). residual [T, sum of rows] of dtype is
        added before the one rounding at the end. KernelError: formats that do not go together, or a K that the kernel
        does not take (a multiple of 64 for nvfp4, of 32 for mxfp8, of 16 for fp8 and fp8_block).
        """
        ...

    def swiglu(self, gate_up: Array) -> Array:
        """gate_up [T, 2I] -> silu(gate_up[:, :I]) * gate_up[:, I:], [T, I], in float32, rounded once."""
        ...

    def sigmoid_gate(self, x: Array, gates: Array) -> Array:
        """x [T, N] * sigmoid(the last N columns of gates [T, at least N]), in float32, rounded once."""
        ...

    def add_gated(self, x: Array, y: Array, h: Array, gate: Array) -> Array:
        """x + sigmoid(h . gate) * y: x, y, h [T, H], gate [H] float32; in float32, rounded once."""
        ...

    def route(self, x: Array, router: Linear, top: int, norm: bool, shared: bool = False) -> Routing:
        """The `top` most probable experts of x [T, H] and their probabilities: softmax over `logits(x, router)`.

        Logits [T, E] and softmax are float32 over all E experts; `norm` divides the weights by their sum. Best first,
        lowest index first among equal logits; NaN ranks with -inf. A row with a NaN, or with no finite largest logit,
        gets valid experts and weights of NaN. KernelError: not 1 <= top <= E.
        With `shared` the router has E + 1 rows. Expert E is then not chosen: it comes last in every list, which has
        top + 1 entries, with the weight sigmoid(its logit), `norm` or not.
        """
        ...

    def experts(self, x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Array:
        """Sum over each token's experts of weight * down(swiglu(gate_up(x))); x [T, H] -> [T, H].

        gate_up: one Experts with rows [gate I | up I], or two, gate and up. Products, gate and sum are float32; what
        goes into `down` [E H, I] is rounded to x's type, the sum over a token's experts, in the order of its list, once
        at the end. Expert ids must lie in [0, E).
        """
        ...

    def take_rows(self, x: Array, index: Array, out: Array | None = None) -> Array:
        """x [T, H] at index [N] int32 -> [N, H], in `out` if given."""
        ...

    def qkv_rope_append_(self, kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int,
                         q_norm: Array | None = None, k_norm: Array | None = None, eps: float = 0.0) -> Array:
        """Split qkv [T, (heads + 2 kv_heads) D]; norm q, k per head, rotate, append k and v; return q [T, heads, D].

        Columns of qkv beyond these, a multiple of D, are somebody else's (`sigmoid_gate`).
        `rope_table` [C, 2, d/2] float32 holds cos (0) and sin (1) per position; the first d of D dims are rotated
        in pairs (j, j + d/2), the rest pass through. q_norm, k_norm [D] float32 are RMS norm weights applied before
        rotation. Values are rounded to the activation dtype once, after rotation; the cache stores its own dtype.
        """
        ...

    def attend(self, q: Array, kv: PagedKV, batch: Batch, scale: float, window: int, softcap: float = 0.0) -> Array:
        """Causal attention of q [T, heads, D] over the pages of each token's row -> [T, heads * D].

        A token at position p sees keys j with 0 <= p - j, and p - j < window if window > 0. Query head h reads KV head
        h // (heads / kv_heads). A score is scale * (q . k), or softcap * tanh(that / softcap) if softcap is not 0.
        Softmax in float32. Padding tokens give zeros. Keys before a row's first new token were written before the step
        began. KernelError: scale <= 0 or softcap < 0.
        """
        ...

    def attention_(self, kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int, scale: float,
                   window: int, softcap: float = 0.0, q_norm: Array | None = None, k_norm: Array | None = None,
                   eps: float = 0.0) -> Array:
        """`attend` of what `qkv_rope_append_` returns: q, k, v of the layer's new tokens to [T, heads * D]."""
        ...

    def gated_delta_(self, state: Recurrent, proj: Array, batch: Batch, params: DeltaParams) -> Array:
        """A Gated DeltaNet layer (Yang, Kautz and Hatamizadeh, 2024) between its projections -> [T, nv dv].

        proj [T, channels + nv dv + 2 nv] holds, side by side, q (nk dk), k (nk dk), v (nv dv), z (nv dv), b (nv) and
        a (nv). q, k, v go through a causal convolution over time and silu; q and k of a head are divided by sqrt(sum of
        squares + 1e-6), q also by sqrt(dk). beta = sigmoid(b), g = decay * softplus(a + dt_bias), at most 0. Each value
        head has a state S [dk, dv]; per token, in float32: S *= e^g, d = (v - k S) beta, S += k^T d, o = q S. The
        result is rms_norm(o, eps) * norm * silu(z), rounded once. Padding tokens give zeros.

        A row continues what slot `batch.state_from` holds; state and inputs after token t go to slot `state_to[t]`.
        Rows of up to 16 tokens are computed token by token: one by one or all at once they have the same bits, and a
        state of 16 bits is rounded after every token. Longer rows go through chunks of 64 tokens, equal up to rounding,
        and a 16-bit state is rounded where it is stored.
        """
        ...

    def sample_(self, state: PenaltyState, logits: Array, params: SampleParams) -> Sampled:
        """Choose one token per row of logits [N, V] float32. Exact: equal logits give equal tokens on every backend.

        z = logits, -inf where `params.mask` excludes the token; z += bias (biases of one id add up in order); penalties
        per `types.Sampling` (repetition: z>0 ? z/r : z*r for tokens in prompt or answer; then z -= frequency * count;
        then z -= presence if count > 0), all in float32 with one rounding per operation. temperature 0: the highest z,
        lowest id first. Otherwise z /= temperature and e = exp_f32(z - max z) with the polynomial of
        `ops/ref/sample.py`, whose float32 operations are rounded one by one (no fused multiply-add) so that every
        backend gives the same bits. Kept:
        e >= min_p; then the top_k largest (ties at the boundary are kept); then the smallest set of largest whose mass
        reaches top_p of the mass kept so far (ties kept). Mass is the integer floor(e * 2^40), so sums have no order.
        Then a 64-bit Philox4x32-10 draw with key = seed and counter = (position, 0, 0, 0) is scaled by mulhi to the
        total mass and picks the first id (ascending) whose running mass exceeds it. NaN logits and -inf are never
        chosen; +inf counts as the largest float32. A row with no usable logit gives token -1. Rows with slot >= 0 add
        the chosen token to state.counts.

        A row with `guess` g >= 0 goes with the row before it, of the same slot: it counts only if that one counts and
        chose g. Otherwise its token is VOID, its log-probabilities -inf, its alternatives -1, and nothing is added to
        state.counts. Penalties see the tokens that the rows before it, down to the first without a guess, chose.
        """
        ...

    def penalty_load_(self, state: PenaltyState, slot: int, prompt: Array, answer: Array) -> None:
        """Clear a slot, then flag the tokens of prompt [n] int32 and count those of answer [m] int32."""
        ...

    def newest_tokens(self, newest: Array, ids: Array) -> Array:
        """ids [T] int32 in which each id below 0 is replaced by newest[-1 - id] (newest [S] int32)."""
        ...

    def deliver_(self, state: TokenState, sampled: Sampled, slots: Array) -> None:
        """Write N results to the beginning of state.block as 32-bit words, field by field: tokens [N], logprobs [N],
        top_ids [N, top], top_logprobs [N, top]; and each token to state.newest at slots [N] int32, -1 for none."""
        ...

    def token_logprobs(self, logits: Array, targets: Array) -> Array:
        """log_softmax(logits [N, V])[i, targets[i]] -> [N] float32; a target of -1 gives 0."""
        ...
