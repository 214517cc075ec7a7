/* What stands between the matrix products: norms, gates, rotations. Rows of bfloat16, sums in float32. */
#include "simd.h"
#include <math.h>
#include <string.h>

enum { SERIAL = 1 << 15 }; /* numbers up to which waking a second thread costs more than it saves */

/* x [rows, d] += added, if there is one; out = x / sqrt(mean(x^2) + eps) * weight. Rows of x are `stride` apart. */
void add_rms_norm(bf16 *x, const bf16 *added, const bf16 *weight, bf16 *out, long rows, long d, long stride, float eps,
                  int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * d > SERIAL)
    for (long r = 0; r < rows; r++) {
        bf16 *row = x + r * stride;
        __m512 squares = _mm512_setzero_ps();
        for (long i = 0; i < d; i += 16) {
            const __mmask16 lanes = first_lanes(d - i);
            __m512 v = load_bf16_part(row + i, lanes);
            if (added) {
                const __m256i rounded = narrow(_mm512_add_ps(v, load_bf16_part(added + r * d + i, lanes)));
                _mm256_mask_storeu_epi16(row + i, lanes, rounded);
                v = widen(rounded);
            }
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)d + eps));
        for (long i = 0; i < d; i += 16) {
            const __mmask16 lanes = first_lanes(d - i);
            const __m512 v = _mm512_mul_ps(load_bf16_part(row + i, lanes), factor);
            store_bf16_part(out + r * d + i, lanes, _mm512_mul_ps(v, load_bf16_part(weight + i, lanes)));
        }
    }
}

/* out [rows, d] = silu(gate) * up, both halves of gate_up [rows, 2 d]. */
void silu_mul(const bf16 *gate_up, bf16 *out, long rows, long d, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * d > SERIAL)
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < d; i += 16) {
            const __mmask16 lanes = first_lanes(d - i);
            const __m512 gate = load_bf16_part(gate_up + r * 2 * d + i, lanes);
            const __m512 up = load_bf16_part(gate_up + (r * 2 + 1) * d + i, lanes);
            const __m512 one = _mm512_set1_ps(1);
            const __m512 below = _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
            store_bf16_part(out + r * d + i, lanes, _mm512_mul_ps(_mm512_div_ps(gate, below), up));
        }
}

/* One head, [d]: norm (if there is a weight), then turn by a row of cos and sin whose first half is negated. */
static inline void turn_head(bf16 *head, const bf16 *cos, const bf16 *sin, const bf16 *norm, float eps, long d) {
    const long half = d / 2;
    __m512 factor = _mm512_set1_ps(1);
    if (norm) {
        __m512 squares = _mm512_setzero_ps();
        for (long i = 0; i < d; i += 16) {
            const __m512 v = load_bf16_part(head + i, first_lanes(d - i));
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)d + eps));
    }
    for (long i = 0; i < half; i += 16) {
        const __mmask16 lanes = first_lanes(half - i);
        __m512 a = load_bf16_part(head + i, lanes), b = load_bf16_part(head + half + i, lanes);
        if (norm) { /* rounded, as a norm of its own would be */
            a = _mm512_mul_ps(_mm512_mul_ps(a, factor), load_bf16_part(norm + i, lanes));
            b = _mm512_mul_ps(_mm512_mul_ps(b, factor), load_bf16_part(norm + half + i, lanes));
            a = widen(narrow(a)), b = widen(narrow(b));
        }
        const __m512 c = load_bf16_part(cos + i, lanes), s = load_bf16_part(sin + half + i, lanes);
        store_bf16_part(head + i, lanes, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        store_bf16_part(head + half + i, lanes, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

/* Norm and turn the q and k heads of qkv [tokens, heads + 2 * kv_heads, d] in place, by cos and sin [tokens, d], and
   copy k and v to rows `k_rows` and `v_rows` of their planes, kv_heads * d wide. */
void rotate_and_write(bf16 *qkv, const bf16 *cos, const bf16 *sin, const bf16 *q_norm, const bf16 *k_norm, float eps,
                      bf16 *k_plane, bf16 *v_plane, const int64_t *k_rows, const int64_t *v_rows, long tokens,
                      long heads, long kv_heads, long d, int threads) {
    const long width = (heads + 2 * kv_heads) * d, kv = kv_heads * d;
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens * width > SERIAL)
    for (long t = 0; t < tokens; t++) {
        bf16 *row = qkv + t * width;
        for (long h = 0; h < heads + kv_heads; h++)
            turn_head(row + h * d, cos + t * d, sin + t * d, h < heads ? q_norm : k_norm, eps, d);
        memcpy(k_plane + k_rows[t] * kv, row + heads * d, kv * 2);
        memcpy(v_plane + v_rows[t] * kv, row + (heads + kv_heads) * d, kv * 2);
    }
}
