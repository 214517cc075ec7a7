/* Attention of single new tokens over a paged cache: one query a sequence, keys read where they lie.

   A unit of work is a sequence, a KV head and a share of the context (flash decoding): the query heads of a KV head
   go through its keys together, 16 keys at a time, with a running maximum (online softmax). Shares are joined by a
   second pass. */
#include "simd.h"
#include <math.h>
#include <stdlib.h>

enum { STEP = 16, MAX_DIM = 512, MAX_HEADS = 8, SHARE = 512 }; /* keys, numbers, heads at once, keys a unit */

typedef struct {
    const bf16 *k, *v;    /* the KV head's first number in block 0 */
    long block_stride;    /* numbers from block to block */
    long row_stride;      /* from token to token */
    const int64_t *table; /* of the sequence */
    long block_size, dim;
} paged;

static inline const bf16 *row_of(const bf16 *plane, const paged *at, long position) {
    return plane + at->table[position / at->block_size] * at->block_stride +
           position % at->block_size * at->row_stride;
}

/* out [heads, dim], maximum and total of `heads` queries over keys first .. last - 1. */
static inline __attribute__((always_inline)) void attend_share(const bf16 *q, const paged *at, long first, long last,
                                                                float scale, long heads, float *out, float *maximum,
                                                                float *total) {
    const long dim = at->dim;
    float weights[MAX_HEADS][STEP];
    const bf16 *keys[STEP], *values[STEP];
    for (long h = 0; h < heads; h++) maximum[h] = -INFINITY, total[h] = 0;
    for (long i = 0; i < heads * dim; i += 16) _mm512_storeu_ps(out + i, _mm512_setzero_ps());
    for (long start = first; start < last; start += STEP) {
        const long count = last - start < STEP ? last - start : STEP;
        for (long j = 0; j < STEP; j++) {
            const long position = start + (j < count ? j : 0);
            keys[j] = row_of(at->k, at, position), values[j] = row_of(at->v, at, position);
            const long ahead = start + STEP + j; /* rows of one head lie apart: the processor does not foresee them */
            if (ahead < last) {
                const bf16 *key = row_of(at->k, at, ahead), *value = row_of(at->v, at, ahead);
                for (long i = 0; i < dim; i += 32) {
                    _mm_prefetch(key + i, _MM_HINT_T0);
                    _mm_prefetch(value + i, _MM_HINT_T0);
                }
            }
        }
        for (long h = 0; h < heads; h++) {
            __m512 dots[STEP];
            for (long j = 0; j < STEP; j++) {
                dots[j] = _mm512_setzero_ps();
                for (long i = 0; i < dim; i += 32) {
                    const __m512bh query = (__m512bh)_mm512_loadu_si512(q + h * dim + i);
                    dots[j] = _mm512_dpbf16_ps(dots[j], query, (__m512bh)_mm512_loadu_si512(keys[j] + i));
                }
            }
            const __m512 scores = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), first_lanes(count), sums_of_16(dots),
                                                     _mm512_set1_ps(scale));
            const float before = maximum[h], now = fmaxf(before, _mm512_reduce_max_ps(scores));
            const __m512 weight = _mm512_maskz_mov_ps(first_lanes(count), exp_ps(_mm512_sub_ps(scores, _mm512_set1_ps(now))));
            if (now > before) { /* what is there was weighed against a smaller maximum */
                const float shrink = expf(before - now);
                total[h] *= shrink;
                for (long i = 0; i < dim; i += 16)
                    _mm512_storeu_ps(out + h * dim + i,
                                     _mm512_mul_ps(_mm512_loadu_ps(out + h * dim + i), _mm512_set1_ps(shrink)));
                maximum[h] = now;
            }
            total[h] += _mm512_reduce_add_ps(weight);
            _mm512_storeu_ps(weights[h], weight);
        }
        for (long i = 0; i < dim; i += 16) {
            __m512 sums[MAX_HEADS];
            for (long h = 0; h < heads; h++) sums[h] = _mm512_loadu_ps(out + h * dim + i);
            for (long j = 0; j < count; j++) {
                const __m512 value = load_bf16(values[j] + i);
                for (long h = 0; h < heads; h++)
                    sums[h] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h][j]), value, sums[h]);
            }
            for (long h = 0; h < heads; h++) _mm512_storeu_ps(out + h * dim + i, sums[h]);
        }
    }
}

static void attend_heads(const bf16 *q, const paged *at, long first, long last, float scale, long heads, float *out,
                         float *maximum, float *total) {
    switch (heads) {
    case 1: attend_share(q, at, first, last, scale, 1, out, maximum, total); break;
    case 2: attend_share(q, at, first, last, scale, 2, out, maximum, total); break;
    case 3: attend_share(q, at, first, last, scale, 3, out, maximum, total); break;
    case 4: attend_share(q, at, first, last, scale, 4, out, maximum, total); break;
    case 8: attend_share(q, at, first, last, scale, 8, out, maximum, total); break;
    default: attend_share(q, at, first, last, scale, heads, out, maximum, total);
    }
}

/* out [n, heads * dim] from q [n, heads, dim] (rows `q_stride` apart); sequence s reads context[s] keys, or the last
   `window` of them. Planes are [blocks, block_size, kv_heads, dim], blocks `block_stride` apart. dim is a multiple of
   32 up to MAX_DIM. Answers 0, or 1 where memory for partial results could not be had. */
int paged_attention(const bf16 *q, long q_stride, const bf16 *k, const bf16 *v, long block_stride, const int64_t *tables,
                    long table_width, const int64_t *context, bf16 *out, long n, long heads, long kv_heads, long dim,
                    long block_size, long window, float scale, int threads) {
    const long share = heads / kv_heads, packs = (share + MAX_HEADS - 1) / MAX_HEADS;
    long longest = 0;
    for (long s = 0; s < n; s++) {
        const long reach = window && window < context[s] ? window : context[s];
        longest = reach > longest ? reach : longest;
    }
    const long splits = (longest + SHARE - 1) / SHARE;
    const long units = n * kv_heads * packs * splits, width = MAX_HEADS * (dim + 2);
    float *partial = malloc(units * width * sizeof(float));
    if (!partial) return 1;
#pragma omp parallel num_threads(threads) if (n * longest * heads * dim > 1 << 16)
    {
#pragma omp for schedule(dynamic)
        for (long u = 0; u < units; u++) {
            const long split = u % splits, pack = u / splits % packs, g = u / splits / packs % kv_heads;
            const long s = u / splits / packs / kv_heads;
            const long begin = window && window < context[s] ? context[s] - window : 0;
            const long first = begin + split * SHARE;
            const long last = first + SHARE < context[s] ? first + SHARE : context[s];
            const long here = share - pack * MAX_HEADS < MAX_HEADS ? share - pack * MAX_HEADS : MAX_HEADS;
            const paged at = {k + g * dim, v + g * dim, block_stride, kv_heads * dim, tables + s * table_width,
                              block_size, dim};
            float *mine = partial + u * width;
            attend_heads(q + s * q_stride + (g * share + pack * MAX_HEADS) * dim, &at, first, last, scale, here, mine,
                         mine + MAX_HEADS * dim, mine + MAX_HEADS * (dim + 1));
        }
#pragma omp for schedule(static)
        for (long row = 0; row < n * heads; row++) {
            const long s = row / heads, h = row % heads, g = h / share, pack = h % share / MAX_HEADS;
            const float *parts = partial + ((s * kv_heads + g) * packs + pack) * splits * width;
            const long lane = h % share % MAX_HEADS;
            float maximum = -INFINITY, total = 0;
            for (long i = 0; i < splits; i++) maximum = fmaxf(maximum, parts[i * width + MAX_HEADS * dim + lane]);
            for (long i = 0; i < splits; i++)
                total += parts[i * width + MAX_HEADS * (dim + 1) + lane] *
                         expf(parts[i * width + MAX_HEADS * dim + lane] - maximum);
            for (long i = 0; i < dim; i += 16) {
                __m512 sum = _mm512_setzero_ps();
                for (long j = 0; j < splits; j++) {
                    const float weight = expf(parts[j * width + MAX_HEADS * dim + lane] - maximum);
                    sum = _mm512_fmadd_ps(_mm512_set1_ps(weight), _mm512_loadu_ps(parts + j * width + lane * dim + i), sum);
                }
                store_bf16(out + row * dim + i, _mm512_mul_ps(sum, _mm512_set1_ps(1 / total)));
            }
        }
    }
    free(partial);
    return 0;
}
