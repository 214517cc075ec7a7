/* y = x W^T + bias with W in groups of 32 codes of 4 or 8 bits: w = code * scale + low, or (code - 128) * scale.

   W [N, K] lies in panels of 16 rows of W (columns of y), N padded to an even number of panels. A panel is K / 32
   records: the codes of 32 k and 16 columns, 16 scales and, for 4 bits, 16 lows, both in float16. Byte [j][c][i] of
   the codes is k = 4 j + i of column c; with 4 bits its high half is k = 16 + 4 j + i.

   Few rows of x are themselves rounded to 8 bits in groups of 32, and the products are of integers (as llama.cpp
   multiplies); many rows get the weights expanded to bfloat16, a panel at a time. */
#include "matmul.h"
#include <omp.h>
#include <stdlib.h>

enum { FEW = 16, AT_ONCE = 8, RECORD_4 = 256 + 32 + 32, RECORD_8 = 512 + 32 };

static inline long record_bytes(int bits) { return bits == 4 ? RECORD_4 : RECORD_8; }

/* codes [n, k] below 2^bits; scale and low [n, k / 32] float16 bits; low is not read for 8 bits. */
void pack_groups(const uint8_t *codes, const uint16_t *scale, const uint16_t *low, uint8_t *packed, long n, long k,
                 int bits) {
    const long panels = (n + 31) / 32 * 2, groups = k / 32, size = record_bytes(bits);
#pragma omp parallel for
    for (long p = 0; p < panels; p++)
        for (long g = 0; g < groups; g++) {
            uint8_t *record = packed + (p * groups + g) * size;
            memset(record, 0, size);
            uint16_t *scales = (uint16_t *)(record + (bits == 4 ? 256 : 512));
            for (long c = 0; c < 16 && p * 16 + c < n; c++) {
                const long row = p * 16 + c;
                const uint8_t *from = codes + row * k + g * 32;
                scales[c] = scale[row * groups + g];
                if (bits == 4) scales[16 + c] = low[row * groups + g];
                for (long j = 0; j < (bits == 4 ? 4 : 8); j++)
                    for (long i = 0; i < 4; i++)
                        record[j * 64 + c * 4 + i] =
                            bits == 4 ? from[4 * j + i] | from[16 + 4 * j + i] << 4 : from[4 * j + i];
            }
        }
}

/* rows [count, k] of the weight that was packed. */
void unpack_group_rows(const uint8_t *packed, const int64_t *ids, bf16 *rows, long count, long k, int bits) {
    const long groups = k / 32, size = record_bytes(bits);
    for (long t = 0; t < count; t++)
        for (long g = 0; g < groups; g++) {
            const long c = ids[t] % 16;
            const uint8_t *record = packed + (ids[t] / 16 * groups + g) * size;
            const uint16_t *scales = (const uint16_t *)(record + (bits == 4 ? 256 : 512));
            const float scale = _cvtsh_ss(scales[c]), low = bits == 4 ? _cvtsh_ss(scales[16 + c]) : -128 * scale;
            float w[32];
            for (long i = 0; i < 32; i++) {
                const int code = bits == 4 ? record[i % 16 / 4 * 64 + c * 4 + i % 4] >> i / 16 * 4 & 15
                                           : record[i / 4 * 64 + c * 4 + i % 4];
                w[i] = (float)code * scale + low;
            }
            store_bf16(rows + t * k + g * 32, _mm512_loadu_ps(w));
            store_bf16(rows + t * k + g * 32 + 16, _mm512_loadu_ps(w + 16));
        }
}

static inline __m512 load_f16(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }

/* A row of x in 8 bits. `quad[k / 4]` are four codes, `step` and `sum` belong to a group of 32: its scale, and
   what stands for the weights' offset: the sum of the rounded numbers (4 bits) or 128 times that of their codes
   (8 bits). */
typedef struct {
    int32_t *quad;
    float *step, *sum;
} rounded;

static void round_row(const bf16 *x, rounded *row, long k, int bits) {
    for (long g = 0; g < k / 32; g++) {
        const __m512 a = load_bf16(x + g * 32), b = load_bf16(x + g * 32 + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const __m512 inverse = _mm512_set1_ps(most > 0 ? 127 / most : 0);
        const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)),
                      qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
        _mm_storeu_si128((__m128i *)(row->quad + g * 8), _mm512_cvtepi32_epi8(qa));
        _mm_storeu_si128((__m128i *)(row->quad + g * 8 + 4), _mm512_cvtepi32_epi8(qb));
        const float sum = (float)_mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
        row->step[g] = most / 127;
        /* Of the rounded numbers: with the exact ones, rounding errors would meet codes instead of weights. */
        row->sum[g] = bits == 4 ? sum * row->step[g] : sum * 128;
    }
}

/* 16 columns of up to AT_ONCE rows of y. Inlined with constant `count` and `bits`, so that sums stay in registers. */
static inline __attribute__((always_inline)) void dot_panel(const uint8_t *record, const rounded *rows, long count,
                                                             __m512 *sums, long groups, int bits) {
    const __m512i half = _mm512_set1_epi8(15);
    for (long i = 0; i < count; i++) sums[i] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++, record += record_bytes(bits)) {
        __m512i codes[8];
        for (int line = 0; line < 5; line++) _mm_prefetch(record + 4096 + line * 64, _MM_HINT_T0);
        if (bits == 4)
            for (int j = 0; j < 4; j++) {
                const __m512i both = _mm512_loadu_si512(record + j * 64);
                codes[j] = _mm512_and_si512(both, half);
                codes[4 + j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
            }
        else
            for (int j = 0; j < 8; j++) codes[j] = _mm512_loadu_si512(record + j * 64);
        const __m512 scale = load_f16(record + (bits == 4 ? 256 : 512));
        const __m512 low = bits == 4 ? load_f16(record + 288) : scale;
        for (long i = 0; i < count; i++) {
            const int32_t *quad = rows[i].quad + g * 8;
            __m512i one = _mm512_setzero_si512(), two = _mm512_setzero_si512();
            for (int j = 0; j < 4; j++) {
                one = _mm512_dpbusd_epi32(one, codes[j], _mm512_set1_epi32(quad[j]));
                two = _mm512_dpbusd_epi32(two, codes[4 + j], _mm512_set1_epi32(quad[4 + j]));
            }
            __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(one, two));
            const __m512 step = _mm512_set1_ps(rows[i].step[g]), sum = _mm512_set1_ps(rows[i].sum[g]);
            if (bits == 4) {
                sums[i] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, step), sums[i]);
                sums[i] = _mm512_fmadd_ps(low, sum, sums[i]);
            } else
                sums[i] = _mm512_fmadd_ps(_mm512_sub_ps(dot, sum), _mm512_mul_ps(scale, step), sums[i]);
        }
    }
}

static inline __attribute__((always_inline)) void dot_rows(const uint8_t *record, const rounded *rows, long count,
                                                            __m512 *sums, long groups, int bits) {
    switch (count) {
    case 1: dot_panel(record, rows, 1, sums, groups, bits); break;
    case 2: dot_panel(record, rows, 2, sums, groups, bits); break;
    case 3: dot_panel(record, rows, 3, sums, groups, bits); break;
    case 4: dot_panel(record, rows, 4, sums, groups, bits); break;
    case 5: dot_panel(record, rows, 5, sums, groups, bits); break;
    case 6: dot_panel(record, rows, 6, sums, groups, bits); break;
    case 7: dot_panel(record, rows, 7, sums, groups, bits); break;
    default: dot_panel(record, rows, 8, sums, groups, bits);
    }
}

static inline void store_pair(bf16 *tile_row, __m512 even, __m512 odd) {
    const __m512i low = _mm512_cvtepu16_epi32(narrow(even)), high = _mm512_cvtepu16_epi32(narrow(odd));
    _mm512_storeu_si512(tile_row, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* One record as the tile [16 pairs of k][16 columns][2] of matmul.h. */
static inline void expand(const uint8_t *record, bf16 *tile, int bits) {
    const __m512 scale = load_f16(record + (bits == 4 ? 256 : 512));
    const __m512 low = bits == 4 ? load_f16(record + 288) : _mm512_mul_ps(scale, _mm512_set1_ps(-128));
    const __m512i mask = _mm512_set1_epi32(bits == 4 ? 15 : 255);
    for (int j = 0; j < (bits == 4 ? 4 : 8); j++) {
        const __m512i four = _mm512_loadu_si512(record + j * 64);
        for (int part = 0; part < (bits == 4 ? 2 : 1); part++) {
            __m512 w[4];
            for (int i = 0; i < 4; i++) {
                const __m512i code = _mm512_and_si512(_mm512_srli_epi32(four, 8 * i + 4 * part), mask);
                w[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), scale, low);
            }
            store_pair(tile + (part * 8 + j * 2) * 32, w[0], w[1]);
            store_pair(tile + (part * 8 + j * 2 + 1) * 32, w[2], w[3]);
        }
    }
}

static int few_rows(const bf16 *x, const uint8_t *packed, const bf16 *bias, bf16 *y, long m, long n, long k, int bits,
                    int threads) {
    const long panels = (n + 15) / 16, groups = k / 32;
    int32_t *quads = malloc(m * (k + groups * 8));
    if (!quads) return 1;
    rounded rows[FEW];
    for (long i = 0; i < m; i++) {
        float *numbers = (float *)(quads + m * k / 4) + i * groups * 2;
        rows[i] = (rounded){quads + i * k / 4, numbers, numbers + groups};
        round_row(x + i * k, rows + i, k, bits);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < panels; p++) {
        const uint8_t *record = packed + p * groups * record_bytes(bits);
        const __mmask16 lanes = first_lanes(n - p * 16);
        const __m512 shift = bias ? load_bf16_part(bias + p * 16, lanes) : _mm512_setzero_ps();
        for (long first = 0; first < m; first += AT_ONCE) {
            const long count = m - first < AT_ONCE ? m - first : AT_ONCE;
            __m512 sums[AT_ONCE];
            if (bits == 4)
                dot_rows(record, rows + first, count, sums, groups, 4);
            else
                dot_rows(record, rows + first, count, sums, groups, 8);
            for (long i = 0; i < count; i++)
                store_bf16_part(y + (first + i) * n + p * 16, lanes, _mm512_add_ps(sums[i], shift));
        }
    }
    free(quads);
    return 0;
}

/* Answers 0, or 1 where memory for scratch could not be had. */
int matmul_groups(const bf16 *x, const uint8_t *packed, const bf16 *bias, bf16 *y, long m, long n, long k, int bits,
                  int threads) {
    if (m <= FEW) return few_rows(x, packed, bias, y, m, n, k, bits, threads);
    const long panels = (n + 31) / 32, groups = k / 32, size = record_bytes(bits);
    bf16 *scratch = aligned_alloc(64, threads * k * 64);
    if (!scratch) return 1;
#pragma omp parallel num_threads(threads)
    {
        bf16 *panel = scratch + omp_get_thread_num() * k * 32;
#pragma omp for schedule(static) nowait
        for (long p = 0; p < panels; p++) {
            for (long g = 0; g < groups; g++)
                for (long half = 0; half < 2; half++)
                    expand(packed + ((p * 2 + half) * groups + g) * size, panel + (g * 2 + half) * 512, bits);
            panel_product(x, panel, bias, y, m, n, k, p);
        }
        matrix_unit_off();
    }
    free(scratch);
    return 0;
}
