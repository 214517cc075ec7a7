/* What the kernels share: bfloat16 in and out of 16-lane vectors, and the exponential. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

typedef uint16_t bf16; /* the bits */

static inline __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
static inline __m512 load_bf16(const bf16 *at) { return widen(_mm256_loadu_si256((const __m256i *)at)); }
static inline __m512 load_bf16_part(const bf16 *at, __mmask16 lanes) {
    return widen(_mm256_maskz_loadu_epi16(lanes, at));
}
static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
static inline void store_bf16(bf16 *at, __m512 x) { _mm256_storeu_si256((__m256i *)at, narrow(x)); }
static inline void store_bf16_part(bf16 *at, __mmask16 lanes, __m512 x) {
    _mm256_mask_storeu_epi16(at, lanes, narrow(x));
}
static inline __mmask16 first_lanes(long count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

/* e^x within 2 units of the last place of float32: 2^n * p(f) with x log2(e) = n + f, |f| <= 1/2. */
static inline __m512 exp_ps(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-103.9f)), _mm512_set1_ps(88.7f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts */
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* One value in sixteen lanes: the sums of sixteen vectors, in order. */
static inline __m512 sums_of_16(const __m512 *v) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) {
        __m512 even = _mm512_shuffle_f32x4(v[i], v[i + 8], 0x88), odd = _mm512_shuffle_f32x4(v[i], v[i + 8], 0xdd);
        a[i] = _mm512_add_ps(even, odd); /* lanes 0,1 of i and of i + 8 */
    }
    for (int i = 0; i < 4; i++) {
        __m512 even = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), odd = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i] = _mm512_add_ps(even, odd); /* 128-bit lanes of i, i + 8, i + 4, i + 12 */
    }
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_unpacklo_ps(b[i], b[i + 2]), _mm512_unpackhi_ps(b[i], b[i + 2]));
    const __m512 sum = _mm512_add_ps(_mm512_unpacklo_ps(c[0], c[1]), _mm512_unpackhi_ps(c[0], c[1]));
    /* Lane 4 q + r holds the sum of vector r + 4 * (0, 2, 1, 3)[q]. */
    return _mm512_shuffle_f32x4(sum, sum, _MM_SHUFFLE(3, 1, 2, 0));
}
