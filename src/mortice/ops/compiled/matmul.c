/* y = x W^T + bias in bfloat16, W kept in tiles that the matrix unit (AMX) and dot products read in order.

   W [N, K] lies in panels of 32 rows of W (columns of y). A panel is K / 32 steps of two tiles, one for each 16
   columns; a tile is [16 pairs of k][16 columns][2], 1 KiB. N is padded with zeros to whole panels. Each number of y
   is summed over k in one order, whatever M is. */
#include "matmul.h"

void pack_bf16(const bf16 *w, bf16 *packed, long n, long k) {
    const long panels = (n + 31) / 32, steps = k / 32;
#pragma omp parallel for
    for (long p = 0; p < panels; p++)
        for (long s = 0; s < steps; s++)
            for (long half = 0; half < 2; half++) {
                bf16 *tile = packed + ((p * steps + s) * 2 + half) * 512;
                for (long r = 0; r < 16; r++)
                    for (long c = 0; c < 16; c++) {
                        const long row = p * 32 + half * 16 + c;
                        for (long i = 0; i < 2; i++)
                            tile[(r * 16 + c) * 2 + i] = row < n ? w[row * k + s * 32 + 2 * r + i] : 0;
                    }
            }
}

/* rows [count, k] of the weight that was packed. */
void unpack_rows(const bf16 *packed, const int64_t *ids, bf16 *rows, long count, long k) {
    for (long t = 0; t < count; t++)
        for (long s = 0; s < k / 32; s++) {
            const bf16 *tile = packed + ((ids[t] / 32 * (k / 32) + s) * 2 + ids[t] % 32 / 16) * 512 + ids[t] % 16 * 2;
            for (long r = 0; r < 16; r++) memcpy(rows + t * k + s * 32 + 2 * r, tile + r * 32, 4);
        }
}

void matmul_bf16(const bf16 *x, const bf16 *packed, const bf16 *bias, bf16 *y, long m, long n, long k, int threads) {
    const long panels = (n + 31) / 32, steps = k / 32;
    /* So many rows of x stay in the second-level cache while all panels pass. */
    const long chunk = m <= 64 ? m : ((1 << 19) / k + 32) / 32 * 32, chunks = (m + chunk - 1) / chunk;
#pragma omp parallel num_threads(threads)
    {
        for (long part = 0; part < chunks; part++) {
            const long first = part * chunk, rows = m - first < chunk ? m - first : chunk;
#pragma omp for schedule(static) nowait
            for (long p = 0; p < panels; p++)
                panel_product(x + first * k, packed + p * steps * 1024, bias, y + first * n, rows, n, k, p);
        }
        matrix_unit_off();
    }
}
