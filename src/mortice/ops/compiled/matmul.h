/* One panel's product: 32 columns of y from rows of x. The inner loop of every matrix product here. */
#pragma once
#include "simd.h"
#include <string.h>

#ifdef __AMX_BF16__
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tiles 0 to 3 are sums [rows, 16] float32, 4 and 5 rows of x, 6 and 7 of W. */
static inline void shape_tiles(long above, long below) {
    tile_shapes shapes = {.palette = 1};
    const uint8_t rows[8] = {above, above, below, below, above, below, 16, 16};
    for (int t = 0; t < 8; t++) {
        shapes.rows[t] = rows[t] ? rows[t] : 1;
        shapes.row_bytes[t] = 64;
    }
    __asm__ volatile("" : : "m"(shapes)); /* gcc 12 thinks that the next instruction reads 8 bytes of them */
    _tile_loadconfig(&shapes);
}
static inline void matrix_unit_off(void) { _tile_release(); }

/* sums [rows, 32] of x [rows, k] (rows <= 32, `stride` numbers apart) and one panel. */
static inline void block_sums(const bf16 *x, long stride, const bf16 *panel, long rows, long k, float *sums) {
    const bf16 *lower = x + 16 * stride;
    _tile_zero(0); _tile_zero(1);
    if (rows > 16) {
        _tile_zero(2); _tile_zero(3);
        for (long s = 0; s < k; s += 32, panel += 1024) {
            _tile_loadd(4, x + s, stride * 2); _tile_loadd(6, panel, 64); _tile_loadd(7, panel + 512, 64);
            _tile_loadd(5, lower + s, stride * 2);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, sums + 16 * 32, 128); _tile_stored(3, sums + 16 * 32 + 16, 128);
    } else {
        for (long s = 0; s < k; s += 32, panel += 1024) {
            for (int line = 0; line < 32; line++) _mm_prefetch(panel + 4096 + line * 32, _MM_HINT_T0);
            _tile_loadd(4, x + s, stride * 2); _tile_loadd(6, panel, 64); _tile_loadd(7, panel + 512, 64);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        }
    }
    _tile_stored(0, sums, 128); _tile_stored(1, sums + 16, 128);
}
#else
static inline void shape_tiles(long above, long below) { (void)above, (void)below; }
static inline void matrix_unit_off(void) {}

static inline void block_sums(const bf16 *x, long stride, const bf16 *panel, long rows, long k, float *sums) {
    for (long first = 0; first < rows; first += 8) {
        const long count = rows - first < 8 ? rows - first : 8;
        __m512 left[8], right[8];
        for (long i = 0; i < 8; i++) left[i] = right[i] = _mm512_setzero_ps();
        for (long s = 0; s < k; s += 2) {
            const bf16 *tile = panel + s / 32 * 1024 + s % 32 * 16;
            const __m512bh a = (__m512bh)_mm512_loadu_si512(tile), b = (__m512bh)_mm512_loadu_si512(tile + 512);
            for (long i = 0; i < count; i++) {
                int32_t pair;
                memcpy(&pair, x + (first + i) * stride + s, 4);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                left[i] = _mm512_dpbf16_ps(left[i], both, a);
                right[i] = _mm512_dpbf16_ps(right[i], both, b);
            }
        }
        for (long i = 0; i < count; i++) {
            _mm512_storeu_ps(sums + (first + i) * 32, left[i]);
            _mm512_storeu_ps(sums + (first + i) * 32 + 16, right[i]);
        }
    }
}
#endif

/* Columns 32 p to 32 p + 31 of y [m, n], from x [m, k] and panel p. */
static inline void panel_product(const bf16 *x, const bf16 *panel, const bf16 *bias, bf16 *y, long m, long n, long k,
                                 long p) {
    float sums[32 * 32] __attribute__((aligned(64)));
    const long column = p * 32;
    const __mmask16 lanes[2] = {first_lanes(n - column), n - column > 16 ? first_lanes(n - column - 16) : 0};
    long shaped = 0;
    for (long first = 0; first < m; first += 32) {
        const long rows = m - first < 32 ? m - first : 32;
        if (rows != shaped) shape_tiles(rows < 16 ? rows : 16, rows - 16 > 0 ? rows - 16 : 0), shaped = rows;
        block_sums(x + first * k, k, panel, rows, k, sums);
        for (long half = 0; half < 2; half++) {
            if (!lanes[half]) break;
            const __m512 shift = bias ? load_bf16_part(bias + column + half * 16, lanes[half]) : _mm512_setzero_ps();
            for (long i = 0; i < rows; i++)
                store_bf16_part(y + (first + i) * n + column + half * 16, lanes[half],
                                _mm512_add_ps(_mm512_load_ps(sums + i * 32 + half * 16), shift));
        }
    }
}
