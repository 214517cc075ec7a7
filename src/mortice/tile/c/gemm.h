/* c [m, n] (+)= a [m, k] b [k, n] on tiles in a thread's memory. All sizes are compile-time constants at each call.

   b is packed into panels of NR columns; a is read where it lies. float32 through vectors of the compiler, bfloat16
   through the matrix unit (AMX) or dot products (AVX-512) where they are there, everything else through float32. */
#pragma once
#include "prelude.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
/* The kernel of Linux gives a process the matrix unit's registers only when asked (ARCH_REQ_XCOMP_PERM, XTILEDATA). */
__attribute__((constructor)) static void ask_for_matrix_unit(void) { syscall(SYS_arch_prctl, 0x1023, 18); }
#endif

#if defined(__AVX512F__)
enum { LANES = 16, MR = 12, NR = 32 };
#else
enum { LANES = 8, MR = 6, NR = 16 };
#endif
enum { STRAIGHT, TURNED, PANELS }; /* forms of an operand */
#if defined(VECTORS) && (defined(__AMX_BF16__) || defined(__AVX512BF16__))
#define PANELS_BF16 1 /* packed operands of bf16 */
#endif
typedef float vf __attribute__((vector_size(LANES * 4), aligned(4)));

#ifdef VECTORS
/* 16 rows of 16 words, `stride` bytes apart, turned over. Quarters of rows 4 apart are put side by side as they are loaded,
   which leaves half of the shuffles. */
INLINE void transpose16_whole(const void *from, int64_t stride, uint32_t *to) {
    for (int q = 0; q < 4; q++) {
        __m512i z[4];
        for (int i = 0; i < 4; i++) {
            const char *row = (const char *)from + i * stride + q * 16;
            z[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)row));
            z[i] = _mm512_inserti32x4(z[i], _mm_loadu_si128((const __m128i *)(row + 4 * stride)), 1);
            z[i] = _mm512_inserti32x4(z[i], _mm_loadu_si128((const __m128i *)(row + 8 * stride)), 2);
            z[i] = _mm512_inserti32x4(z[i], _mm_loadu_si128((const __m128i *)(row + 12 * stride)), 3);
        }
        const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
        const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
        _mm512_storeu_si512(to + q * 64, _mm512_unpacklo_epi64(a, c));
        _mm512_storeu_si512(to + q * 64 + 16, _mm512_unpackhi_epi64(a, c));
        _mm512_storeu_si512(to + q * 64 + 32, _mm512_unpacklo_epi64(b, d));
        _mm512_storeu_si512(to + q * 64 + 48, _mm512_unpackhi_epi64(b, d));
    }
}
/* The same where rows beyond the count and half words not in the mask are 0. */
INLINE void transpose16(const void *from, int64_t stride, int rows, __mmask32 halves, uint32_t *to) {
    if (rows == 16 && halves == 0xffffffff) { transpose16_whole(from, stride, to); return; }
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++)
        r[i] = i < rows ? _mm512_maskz_loadu_epi16(halves, (const char *)from + i * stride) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2)
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_si512(to + j * 16, _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88));
        _mm512_storeu_si512(to + (j + 8) * 16, _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd));
    }
}
#endif

/* b, stored [k, n] or (turned) [n, k], into panels [n / NR][k][NR]; of it columns and depth are there, the rest is 0. */
INLINE void pack_f32(const float *b, int64_t ldb, int turned, int n, int k, int64_t columns, int64_t depth, float *panels) {
    for (int j0 = 0; j0 < n; j0 += NR) {
        float *panel = panels + (int64_t)j0 * k;
        const int wide = columns < j0 ? 0 : columns - j0 < NR ? columns - j0 : NR;
        if (!turned) {
            for (int p = 0; p < k; p++) {
                const int here = p < depth ? wide : 0;
                if (here == NR) { memcpy(panel + p * NR, b + p * ldb + j0, NR * 4); continue; }
                for (int j = 0; j < here; j++) panel[p * NR + j] = b[p * ldb + j0 + j];
                for (int j = here; j < NR; j++) panel[p * NR + j] = 0;
            }
            continue;
        }
#ifdef VECTORS
        uint32_t square[256] __attribute__((aligned(64)));
        for (int half = 0; half < NR; half += 16)
            for (int p0 = 0; p0 < k; p0 += 16) {
                const int rows = wide < half ? 0 : wide - half < 16 ? wide - half : 16;
                const int deep = depth < p0 ? 0 : depth - p0 < 16 ? depth - p0 : 16;
                transpose16(b + (j0 + half) * ldb + p0, ldb * 4, rows, (__mmask32)((UINT64_C(1) << 2 * deep) - 1), square);
                for (int p = 0; p < 16 && p0 + p < k; p++) memcpy(panel + (p0 + p) * NR + half, square + p * 16, 64);
            }
#else
        for (int p = 0; p < k; p++)
            for (int j = 0; j < NR; j++) panel[p * NR + j] = j < wide && p < depth ? b[(j0 + j) * ldb + p] : 0;
#endif
    }
}

/* rows x NR of c: the inner loop. next: of the panel to come, fetched to the second cache meanwhile, a part each call. */
INLINE void block_f32(const float *a, int64_t lda, const float *panel, float *c, int64_t ldc, int rows, int columns,
                      int k, int clear, const float *next) {
    vf left[MR], right[MR];
    for (int i = 0; i < rows; i++) left[i] = right[i] = (vf){0};
    for (int p = 0; p < k; p++) {
        if (p % 8 == 0) __builtin_prefetch(next + p * 2, 0, 2);
        const vf x = *(const vf *)(panel + p * NR), y = *(const vf *)(panel + p * NR + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            const float v = a[i * lda + p];
            left[i] += v * x, right[i] += v * y;
        }
    }
    for (int i = 0; i < rows; i++) {
        float *to = c + i * ldc;
        if (columns == NR) {
            vf *l = (vf *)to, *r = (vf *)(to + LANES);
            *l = clear ? left[i] : *l + left[i], *r = clear ? right[i] : *r + right[i];
        } else {
            float sums[NR];
            memcpy(sums, &left[i], LANES * 4), memcpy(sums + LANES, &right[i], LANES * 4);
            for (int j = 0; j < columns; j++) to[j] = clear ? sums[j] : to[j] + sums[j];
        }
    }
}

static __attribute__((noinline)) void rows_f32(const float *a, int64_t lda, const float *panel, float *c, int64_t ldc,
                                               int rows, int columns, int k, int clear, const float *next) {
#define CASE(r) case r: block_f32(a, lda, panel, c, ldc, r, columns, k, clear, next); break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
#undef CASE
}

INLINE void gemm_panels_f32(const float *a, int64_t lda, const float *panels, float *c, int64_t ldc, int m, int n, int k,
                            int clear) {
    for (int j = 0; j < n; j += NR) {
        const float *const panel = panels + (int64_t)j * k, *next = panel + NR * k;
        for (int i = 0, rows; i < m; i += rows, next += k / 8 * 16) {
            const int left = m - i; /* no block of a few rows at the end: two of like size instead */
            rows = left <= MR ? left : left < 2 * MR ? (left + 1) / 2 : MR;
            rows_f32(a + i * lda, lda, panel, c + i * ldc + j, ldc, rows, n - j < NR ? n - j : NR, k, clear, next);
        }
    }
}

/* scratch: m k + ceil(n / NR) NR k floats. */
INLINE void gemm_f32(const float *a, int64_t lda, int a_form, const float *b, int64_t ldb, int b_form, float *c,
                     int64_t ldc, int m, int n, int k, int clear, char *scratch) {
    float *panels = (float *)scratch + (int64_t)m * k, *straight = (float *)scratch;
    if (b_form == PANELS) panels = (float *)b;
    else pack_f32(b, ldb, b_form == TURNED, n, k, n, k, panels);
    if (a_form == TURNED) {
        for (int i = 0; i < m; i++)
            for (int p = 0; p < k; p++) straight[i * k + p] = a[p * lda + i];
        a = straight, lda = k;
    }
    gemm_panels_f32(a, lda, panels, c, ldc, m, n, k, clear);
}

#ifdef PANELS_BF16
/* b [k, n] or (turned) [n, k] into tiles [n / 32][k / 32][2][16 pairs of k][16 columns][2]; of it columns and depth are
   there, the rest is 0. */
INLINE void pack_bf16(const bf16 *b, int64_t ldb, int turned, int n, int k, int64_t columns, int64_t depth, bf16 *panels) {
    const int steps = (k + 31) / 32;
    for (int j0 = 0; j0 < n; j0 += 32)
        for (int s = 0; s < steps; s++)
            for (int half = 0; half < 2; half++) {
                bf16 *tile = panels + ((int64_t)(j0 / 32 * steps + s) * 2 + half) * 512;
                const int j = j0 + half * 16, p = s * 32, deep = depth < p ? 0 : depth - p < 32 ? depth - p : 32;
                const int wide = columns < j ? 0 : columns - j < 16 ? columns - j : 16;
                if (turned) { /* Pairs of k are words. */
                    transpose16(b + j * ldb + p, ldb * 2, wide, (__mmask32)((UINT64_C(1) << deep) - 1), (uint32_t *)tile);
                    continue;
                }
                const __mmask16 lanes = (__mmask16)((1u << wide) - 1); /* two rows of b, their numbers in turn */
                const bf16 *row = b + (int64_t)p * ldb + j;
                for (int q = 0; q < 16; q++, row += 2 * ldb) {
                    const __m256i x = 2 * q < deep ? _mm256_maskz_loadu_epi16(lanes, row) : _mm256_setzero_si256();
                    const __m256i y = 2 * q + 1 < deep ? _mm256_maskz_loadu_epi16(lanes, row + ldb)
                                                       : _mm256_setzero_si256();
                    const __m256i low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
                    _mm256_storeu_si256((__m256i *)(tile + q * 32), _mm256_permute2x128_si256(low, high, 0x20));
                    _mm256_storeu_si256((__m256i *)(tile + q * 32 + 16), _mm256_permute2x128_si256(low, high, 0x31));
                }
            }
}
/* Squares of a matrix in panels [above, deep, 1024], from (p, s) on; what is not there is 0. */
INLINE void copy_panels(const bf16 *from, int64_t above, int64_t deep, int64_t p, int64_t s, int tall, int wide, bf16 *to) {
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++, to += 1024)
            if (p + i >= 0 && p + i < above && s + j >= 0 && s + j < deep)
                memcpy(to, from + ((p + i) * deep + s + j) * 1024, 2048);
            else memset(to, 0, 2048);
}
/* Row i of a tile of left operands, [m / 16][k / 32][16][32]: of it depth numbers are there, the rest is 0. */
INLINE void pack_row_bf16(const bf16 *from, int i, int k, int64_t depth, bf16 *panels) {
    const int steps = (k + 31) / 32;
    bf16 *to = panels + (int64_t)(i / 16) * steps * 512 + i % 16 * 32;
    for (int s = 0; s < steps; s++) {
        const int deep = depth < 32 * s ? 0 : depth - 32 * s < 32 ? depth - 32 * s : 32;
        _mm512_storeu_si512(to + s * 512, _mm512_maskz_loadu_epi16((__mmask32)((UINT64_C(1) << deep) - 1), from + 32 * s));
    }
}
INLINE void pack_row_f32_bf16(const float *from, int i, int k, bf16 *panels) {
    const int steps = (k + 31) / 32;
    bf16 *to = panels + (int64_t)(i / 16) * steps * 512 + i % 16 * 32;
    for (int s = 0; s < steps; s++)
        for (int half = 0; half < 2; half++) {
            const int at = 32 * s + 16 * half, deep = k < at ? 0 : k - at < 16 ? k - at : 16;
            const __m512 x = _mm512_maskz_loadu_ps((__mmask16)((1u << deep) - 1), from + at);
            _mm256_storeu_si256((__m256i *)(to + s * 512 + 16 * half), lanes_to_bf16(x));
        }
}
INLINE void pack_left_bf16(const bf16 *a, int64_t lda, int m, int k, int64_t rows, int64_t depth, bf16 *panels) {
    for (int i = 0; i < (m + 15) / 16 * 16; i++) pack_row_bf16(a + i * lda, i, k, i < rows ? depth : 0, panels);
}
INLINE void pack_left_f32_bf16(const float *a, int64_t lda, int m, int k, int64_t rows, int64_t depth, bf16 *panels) {
    (void)rows, (void)depth;
    for (int i = 0; i < m; i++) pack_row_f32_bf16(a + i * lda, i, k, panels);
}
/* Where a left operand is found: bytes from row to row, elements from one 16 rows to the next and from one 32
   of k to the next. */
typedef struct { const bf16 *first; int64_t row_bytes, rows, steps; } left_bf16;
INLINE left_bf16 in_place(const bf16 *a, int64_t lda) { return (left_bf16){a, lda * 2, 16 * lda, 32}; }
INLINE left_bf16 in_panels(const bf16 *a, int k) { return (left_bf16){a, 64, (int64_t)((k + 31) / 32) * 512, 512}; }
#ifdef __AMX_BF16__
typedef struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } tile_shapes;
INLINE void shape_tiles(int above, int below) {
    tile_shapes shapes = {.palette = 1};
    const uint8_t rows[8] = {above, above, below, below, above, below, 16, 16};
    for (int t = 0; t < 8; t++) shapes.rows[t] = rows[t] ? rows[t] : 1, shapes.bytes[t] = 64;
    __asm__ volatile("" : : "m"(shapes)); /* gcc 12 thinks that the next instruction reads 8 bytes of them */
    _tile_loadconfig(&shapes);
}
/* 32 x 32 of c; a needs `steps` * 32 readable numbers a row. Of what comes next, `lines` a step are fetched to the second
   cache meanwhile. */
INLINE void block_bf16(left_bf16 a, const bf16 *panel, float *c, int64_t ldc, int rows, int columns, int steps, int clear,
                       const bf16 *next, int lines) {
    float edge[32 * 32] __attribute__((aligned(64)));
    float *to = c;
    int64_t ld = ldc;
    if (columns < 32) {
        to = edge, ld = 32;
        if (!clear) for (int i = 0; i < rows; i++) memcpy(edge + i * 32, c + i * ldc, columns * 4);
    }
    const bf16 *upper = a.first, *lower = a.first + a.rows;
    if (clear) { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
    else {
        _tile_loadd(0, to, ld * 4); _tile_loadd(1, to + 16, ld * 4);
        if (rows > 16) { _tile_loadd(2, to + 16 * ld, ld * 4); _tile_loadd(3, to + 16 * ld + 16, ld * 4); }
    }
    if (rows > 16)
        for (int s = 0; s < steps; s++, panel += 1024, upper += a.steps, lower += a.steps) {
            for (int line = 0; line < lines; line++, next += 32) __builtin_prefetch(next, 0, 2);
            _tile_loadd(4, upper, a.row_bytes); _tile_loadd(6, panel, 64); _tile_loadd(7, panel + 512, 64);
            _tile_loadd(5, lower, a.row_bytes);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
    else
        for (int s = 0; s < steps; s++, panel += 1024, upper += a.steps) {
            for (int line = 0; line < 32; line++) _mm_prefetch(panel + 4096 + line * 32, _MM_HINT_T0);
            _tile_loadd(4, upper, a.row_bytes); _tile_loadd(6, panel, 64); _tile_loadd(7, panel + 512, 64);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        }
    _tile_stored(0, to, ld * 4); _tile_stored(1, to + 16, ld * 4);
    if (rows > 16) { _tile_stored(2, to + 16 * ld, ld * 4); _tile_stored(3, to + 16 * ld + 16, ld * 4); }
    if (columns < 32) for (int i = 0; i < rows; i++) memcpy(c + i * ldc, edge + i * 32, columns * 4);
}
#else /* two numbers of k at a time (dot products of AVX-512) */
INLINE void shape_tiles(int above, int below) { (void)above, (void)below; }
INLINE void block_bf16(left_bf16 a, const bf16 *panel, float *c, int64_t ldc, int rows, int columns, int steps, int clear,
                       const bf16 *next, int lines) {
    for (int line = 0; line < lines * steps; line++) __builtin_prefetch(next + line * 32, 0, 2);
    const __mmask16 here[2] = {first_lanes(columns), columns > 16 ? first_lanes(columns - 16) : 0};
    for (int first = 0; first < rows; first += 8) {
        const int count = rows - first < 8 ? rows - first : 8;
        const char *const left = (const char *)(a.first + first / 16 * a.rows) + first % 16 * a.row_bytes;
        __m512 sums[8][2];
        for (int i = 0; i < 8; i++)
            for (int half = 0; half < 2; half++)
                sums[i][half] = clear || i >= count ? _mm512_setzero_ps()
                                                    : _mm512_maskz_loadu_ps(here[half], c + (first + i) * ldc + half * 16);
        for (int s = 0; s < steps; s++)
            for (int pair = 0; pair < 16; pair++) {
                const bf16 *const right = panel + s * 1024 + pair * 32;
                const __m512bh x = (__m512bh)_mm512_loadu_si512(right), y = (__m512bh)_mm512_loadu_si512(right + 512);
                for (int i = 0; i < count; i++) {
                    int32_t both;
                    memcpy(&both, left + i * a.row_bytes + (s * a.steps + 2 * pair) * 2, 4);
                    const __m512bh v = (__m512bh)_mm512_set1_epi32(both);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], v, x), sums[i][1] = _mm512_dpbf16_ps(sums[i][1], v, y);
                }
            }
        for (int i = 0; i < count; i++)
            for (int half = 0; half < 2; half++)
                _mm512_mask_storeu_ps(c + (first + i) * ldc + half * 16, here[half], sums[i][half]);
    }
}
#endif
/* pitch: elements from one panel to the next. */
INLINE void gemm_panels_bf16(left_bf16 a, const bf16 *panels, int64_t pitch, float *c, int64_t ldc, int m, int n, int k,
                             int clear) {
    const int steps = (k + 31) / 32, blocks = m / 32, rest = m % 32;
    const int lines = blocks > 8 ? 4 : blocks > 2 ? 32 / blocks : 16; /* of the next panel, by the blocks that it has */
    if (blocks) shape_tiles(16, 16);
    for (int j = 0; j < n; j += 32)
        for (int i = 0; i < blocks; i++) {
            left_bf16 here = a;
            here.first += 2 * i * a.rows;
            const bf16 *const panel = panels + j / 32 * pitch, *next = panel + pitch + i * steps * lines * 32;
            block_bf16(here, panel, c + i * 32 * ldc + j, ldc, 32, n - j < 32 ? n - j : 32, steps, clear, next, lines);
        }
    if (!rest) return;
    a.first += 2 * blocks * a.rows;
    shape_tiles(rest < 16 ? rest : 16, rest > 16 ? rest - 16 : 0);
    for (int j = 0; j < n; j += 32)
        block_bf16(a, panels + j / 32 * pitch, c + blocks * 32 * ldc + j, ldc, rest, n - j < 32 ? n - j : 32, steps, clear,
                   panels, 0);
}
#endif

/* scratch: for each side as many float32 as its padded size. */
INLINE void gemm_bf16(const bf16 *a, int64_t lda, int a_form, const bf16 *b, int64_t ldb, int b_form, float *c,
                      int64_t ldc, int m, int n, int k, int clear, char *scratch) {
#ifdef PANELS_BF16
    const int64_t deep = (k + 31) / 32 * 32;
    bf16 *straight = (bf16 *)scratch;
    bf16 *panels = straight + (a_form == PANELS ? 0 : ((int64_t)m * deep + 31) / 32 * 32);
    const int64_t pitch = b_form == PANELS ? ldb : deep * 32;
    if (b_form == PANELS) panels = (bf16 *)b;
    else pack_bf16(b, ldb, b_form == TURNED, n, k, n, k, panels);
    if (a_form == PANELS) {
        gemm_panels_bf16(in_panels(a, k), panels, pitch, c, ldc, m, n, k, clear);
        return;
    }
    if (a_form == TURNED || k % 32) {
        for (int i = 0; i < m; i++)
            for (int p = 0; p < deep; p++)
                straight[i * deep + p] = p >= k ? 0 : a_form == TURNED ? a[p * lda + i] : a[i * lda + p];
        a = straight, lda = deep;
    }
    gemm_panels_bf16(in_place(a, lda), panels, pitch, c, ldc, m, n, k, clear);
#else
    float *wide_a = (float *)scratch, *wide_b = wide_a + (int64_t)m * k;
    const int ra = a_form ? k : m, ca = a_form ? m : k, rb = b_form ? n : k, cb = b_form ? k : n;
    for (int i = 0; i < ra; i++) for (int j = 0; j < ca; j++) wide_a[i * ca + j] = from_bf16(a[i * lda + j]);
    for (int i = 0; i < rb; i++) for (int j = 0; j < cb; j++) wide_b[i * cb + j] = from_bf16(b[i * ldb + j]);
    gemm_f32(wide_a, ca, a_form, wide_b, cb, b_form, c, ldc, m, n, k, clear, (char *)(wide_b + (int64_t)k * n));
#endif
}

/* Operands of any other narrow float. */
#define GEMM_WIDENED(name, type_a, from_a, type_b, from_b)                                                             \
    INLINE void name(const type_a *a, int64_t lda, int a_turned, const type_b *b, int64_t ldb, int b_turned, float *c, \
                     int64_t ldc, int m, int n, int k, int clear, char *scratch) {                                     \
        float *wide_a = (float *)scratch, *wide_b = wide_a + (int64_t)m * k;                                           \
        const int ra = a_turned ? k : m, ca = a_turned ? m : k, rb = b_turned ? n : k, cb = b_turned ? k : n;          \
        for (int i = 0; i < ra; i++) for (int j = 0; j < ca; j++) wide_a[i * ca + j] = from_a(a[i * lda + j]);         \
        for (int i = 0; i < rb; i++) for (int j = 0; j < cb; j++) wide_b[i * cb + j] = from_b(b[i * ldb + j]);         \
        gemm_f32(wide_a, ca, a_turned, wide_b, cb, b_turned, c, ldc, m, n, k, clear,                                   \
                 (char *)(wide_b + (int64_t)k * n));                                                                   \
    }
GEMM_WIDENED(gemm_f16, f16, from_f16, f16, from_f16)
GEMM_WIDENED(gemm_e4m3, e4m3, from_e4m3, e4m3, from_e4m3)
GEMM_WIDENED(gemm_e5m2, e5m2, from_e5m2, e5m2, from_e5m2)
GEMM_WIDENED(gemm_e4m3_e5m2, e4m3, from_e4m3, e5m2, from_e5m2)
GEMM_WIDENED(gemm_e5m2_e4m3, e5m2, from_e5m2, e4m3, from_e4m3)

#define GEMM_WHOLE(name, type)                                                                                         \
    INLINE void name(const type *a, int64_t lda, int a_turned, const type *b, int64_t ldb, int b_turned, int32_t *c,   \
                     int64_t ldc, int m, int n, int k, int clear, char *scratch) {                                     \
        (void)scratch;                                                                                                 \
        for (int i = 0; i < m; i++) {                                                                                  \
            if (clear) for (int j = 0; j < n; j++) c[i * ldc + j] = 0;                                                 \
            for (int p = 0; p < k; p++) {                                                                              \
                const int32_t v = a_turned ? a[p * lda + i] : a[i * lda + p];                                          \
                for (int j = 0; j < n; j++) c[i * ldc + j] += v * (b_turned ? b[j * ldb + p] : b[p * ldb + j]);        \
            }                                                                                                          \
        }                                                                                                              \
    }
GEMM_WHOLE(gemm_i8, int8_t)
GEMM_WHOLE(gemm_u8, uint8_t)

INLINE void matrix_unit_off(void) {
#ifdef __AMX_BF16__
    _tile_release();
#endif
}
