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

/* Where keys and values first .. first + STEP - 1 lie; the last key stands in for those from `last` on. Rows of one head
   lie apart, which the processor does not foresee: they are fetched here, a step before they are used. */
static inline void find_rows(const paged *at, long first, long last, const bf16 **keys, const bf16 **values) {
    long block = first / at->block_size, offset = first % at->block_size;
    for (long j = 0; j < STEP; j++) {
        const long number = at->table[block] * at->block_stride + offset * at->row_stride;
        keys[j] = at->k + number, values[j] = at->v + number;
        for (long i = 0; i < at->dim; i += 32) {
            _mm_prefetch(keys[j] + i, _MM_HINT_T0);
            _mm_prefetch(values[j] + i, _MM_HINT_T0);
        }
        if (first + j + 1 < last && ++offset == at->block_size) offset = 0, block++;
    }
}

/* out [heads, dim], maximum and total of `heads` queries over keys first .. last - 1. Of 32 numbers of `out` the first
   16 belong to the first four of each eight: the order in which pairs of values are taken apart. */
static inline __attribute__((always_inline)) void attend_share(const bf16 *q, const paged *at, long first, long last,
                                                                float scale, long heads, float *out, float *maximum,
                                                                float *total) {
    const long dim = at->dim;
    int32_t weights[MAX_HEADS][STEP / 2]; /* bfloat16, two keys each */
    const bf16 *rows[2][2][STEP];
    for (long h = 0; h < heads; h++) maximum[h] = -INFINITY, total[h] = 0;
    for (long i = 0; i < heads * dim; i += 16) _mm512_storeu_ps(out + i, _mm512_setzero_ps());
    find_rows(at, first, last, rows[0][0], rows[0][1]);
    for (long start = first, turn = 0; start < last; start += STEP, turn ^= 1) {
        const long count = last - start < STEP ? last - start : STEP;
        const bf16 **keys = rows[turn][0], **values = rows[turn][1];
        if (start + STEP < last) find_rows(at, start + STEP, last, rows[turn ^ 1][0], rows[turn ^ 1][1]);
        __m512 dots[MAX_HEADS][STEP];
        for (long j = 0; j < STEP; j++) {
            for (long h = 0; h < heads; h++) dots[h][j] = _mm512_setzero_ps();
            for (long i = 0; i < dim; i += 32) {
                const __m512bh key = (__m512bh)_mm512_loadu_si512(keys[j] + i);
                for (long h = 0; h < heads; h++)
                    dots[h][j] = _mm512_dpbf16_ps(dots[h][j], (__m512bh)_mm512_loadu_si512(q + h * dim + i), key);
            }
        }
        for (long h = 0; h < heads; h++) {
            const __m512 scores = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), first_lanes(count),
                                                     sums_of_16(dots[h]), _mm512_set1_ps(scale));
            const float before = maximum[h], now = fmaxf(before, _mm512_reduce_max_ps(scores));
            const __m512 weight = exp_ps(_mm512_sub_ps(scores, _mm512_set1_ps(now)));
            if (now > before) { /* what is there was weighed against a smaller maximum */
                const float shrink = expf(before - now);
                total[h] *= shrink;
                for (long i = 0; i < dim; i += 16)
                    _mm512_storeu_ps(out + h * dim + i,
                                     _mm512_mul_ps(_mm512_loadu_ps(out + h * dim + i), _mm512_set1_ps(shrink)));
                maximum[h] = now;
            }
            const __m256i rounded = _mm256_maskz_mov_epi16(first_lanes(count), narrow(weight));
            total[h] += _mm512_reduce_add_ps(widen(rounded));
            _mm256_storeu_si256((__m256i *)weights[h], rounded);
        }
        for (long i = 0; i < dim; i += 32) {
            __m512 low[MAX_HEADS], high[MAX_HEADS];
            for (long h = 0; h < heads; h++)
                low[h] = _mm512_loadu_ps(out + h * dim + i), high[h] = _mm512_loadu_ps(out + h * dim + i + 16);
            for (long j = 0; j < STEP; j += 2) { /* values of two keys side by side, weighed in one go */
                const __m512i one = _mm512_loadu_si512(values[j] + i), two = _mm512_loadu_si512(values[j + 1] + i);
                const __m512bh left = (__m512bh)_mm512_unpacklo_epi16(one, two);
                const __m512bh right = (__m512bh)_mm512_unpackhi_epi16(one, two);
                for (long h = 0; h < heads; h++) {
                    const __m512bh pair = (__m512bh)_mm512_set1_epi32(weights[h][j / 2]);
                    low[h] = _mm512_dpbf16_ps(low[h], pair, left);
                    high[h] = _mm512_dpbf16_ps(high[h], pair, right);
                }
            }
            for (long h = 0; h < heads; h++)
                _mm512_storeu_ps(out + h * dim + i, low[h]), _mm512_storeu_ps(out + h * dim + i + 16, high[h]);
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
            const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
            for (long i = 0; i < dim; i += 32) {
                __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
                for (long j = 0; j < splits; j++) {
                    const float *part = parts + j * width + lane * dim + i;
                    const __m512 weight = _mm512_set1_ps(expf(parts[j * width + MAX_HEADS * dim + lane] - maximum) / total);
                    low = _mm512_fmadd_ps(weight, _mm512_loadu_ps(part), low);
                    high = _mm512_fmadd_ps(weight, _mm512_loadu_ps(part + 16), high);
                }
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
                _mm512_storeu_si512(out + row * dim + i, _mm512_permutexvar_epi64(order, both));
            }
        }
    }
    free(partial);
    return 0;
}
