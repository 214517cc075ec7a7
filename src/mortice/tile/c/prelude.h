/* What generated kernels rest on: element types, conversions, functions that vectorise, memory of a thread. */
#pragma once
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16; /* the bits */
typedef uint8_t e4m3;
typedef uint8_t e5m2;
typedef uint16_t f16; /* the bits: conversions are arithmetic that loops vectorise, as those of one instruction are not */

INLINE float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
INLINE float from_bf16(bf16 x) { return as_float((uint32_t)x << 16); }
INLINE bf16 to_bf16(float x) { /* to nearest even; NaN stays NaN */
    const uint32_t bits = as_bits(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded;
}
INLINE float from_f16(f16 x) { /* small numbers too: the product by 2^112 is exact */
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff;
    const uint32_t finite = as_bits(as_float(rest << 13) * 0x1p112f), other = 0x7f800000 | (rest & 0x3ff) << 13;
    return as_float(sign | (rest >= 0x7c00 ? other : finite));
}
INLINE f16 to_f16(float x) { /* to nearest even; what is below 2^-14 is rounded by adding 1/2 */
    const uint32_t bits = as_bits(x), size = bits & 0x7fffffff;
    const uint32_t plain = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
    const uint32_t small = as_bits(as_float(size) + 0.5f) - 0x3f000000;
    const uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (f16)(bits >> 16 & 0x8000) | (size >= 0x47800000 ? large : size < 0x38800000 ? small : plain);
}
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define VECTORS 1 /* 16 lanes; see c/vectors.py */
INLINE __m256i narrow_bf16(__m512 x) { /* as to_bf16 */
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
#ifdef __AVX512BF16__
/* The processor's own instruction makes zeros of numbers below 2^-126. */
INLINE __m256i lanes_to_bf16(__m512 x) {
    return __builtin_expect(_mm512_fpclass_ps_mask(x, 0x20), 0) ? narrow_bf16(x) : (__m256i)_mm512_cvtneps_pbh(x);
}
#else
INLINE __m256i lanes_to_bf16(__m512 x) { return narrow_bf16(x); }
#endif
INLINE __m256i lanes_to_f16(__m512 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE __m512 lanes_from_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
INLINE __m512 lanes_from_f16(__m256i x) { return _mm512_cvtph_ps(x); }
INLINE __mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }
#define NARROW(kind)                                                                                                   \
    INLINE void to_##kind##_row(const float *from, kind *to, int64_t n) {                                              \
        int64_t i = 0;                                                                                                 \
        for (; i + 16 <= n; i += 16) _mm256_storeu_si256((__m256i *)(to + i), lanes_to_##kind(_mm512_loadu_ps(from + i))); \
        if (i >= n) return;                                                                                            \
        const __mmask16 rest = first_lanes(n - i);                                                                     \
        _mm256_mask_storeu_epi16(to + i, rest, lanes_to_##kind(_mm512_maskz_loadu_ps(rest, from + i)));      \
    }
#else
#define NARROW(kind)                                                                                                   \
    INLINE void to_##kind##_row(const float *from, kind *to, int64_t n) {                                              \
        for (int64_t i = 0; i < n; i++) to[i] = to_##kind(from[i]);                                                    \
    }
#endif
NARROW(bf16)
NARROW(f16)
INLINE float from_e5m2(e5m2 x) { /* the upper half of an f16 */
    const uint32_t sign = (uint32_t)(x & 0x80) << 24, rest = x & 0x7f;
    if (rest >= 0x7c) return as_float(sign | 0x7f800000 | (rest & 3) << 21);
    return as_float(sign | as_bits(as_float(rest << 21) * 0x1p112f));
}
INLINE float from_e4m3(e4m3 x) {
    const uint32_t sign = (uint32_t)(x & 0x80) << 24, rest = x & 0x7f;
    return as_float(sign | (rest == 0x7f ? 0x7fc00000 : as_bits(as_float(rest << 20) * 0x1p120f)));
}
INLINE uint8_t to_fp8(float x, int mantissa, int bias, float largest, uint8_t top) {
    const uint32_t sign = as_bits(x) >> 24 & 0x80;
    const float size = fabsf(x);
    if (!(size == size)) return sign | 0x7f;
    if (size >= largest) return sign | top;
    int exponent = (int)(as_bits(size) >> 23) - 127;
    if (exponent < 1 - bias) exponent = 1 - bias;
    const float unit = as_float((uint32_t)(exponent - mantissa + 127) << 23);
    const int steps = (int)nearbyintf(size / unit); /* nearest even */
    return sign | (((exponent + bias - 1) << mantissa) + steps);
}
INLINE e4m3 to_e4m3(float x) { return to_fp8(x, 3, 7, 448.0f, 0x7e); }
INLINE e5m2 to_e5m2(float x) { return to_fp8(x, 2, 15, 57344.0f, 0x7b); }

/* Rounded down. By 0 they give 0, and nothing traps. */
INLINE int64_t floordiv(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return (int64_t)(0 - (uint64_t)a * (b == -1));
    return a / b - ((a % b != 0) & ((a < 0) != (b < 0)));
}
INLINE int64_t floormod(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return 0;
    const int64_t r = a % b;
    return r + (r != 0 && (r < 0) != (b < 0) ? b : 0);
}
INLINE int overlap(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes) {
    const char *const x = a, *const y = b;
    return (x != y || a_bytes != b_bytes) && x < y + b_bytes && y < x + a_bytes;
}
/* The first refusal of a call stands; see c/checks.py. */
INLINE void refuse(int *failed, int site) {
    int none = 0;
    __atomic_compare_exchange_n(failed, &none, site, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
/* Two underscores: a kernel's own names end in one. */
#define MIN(a, b) ({ __typeof__(a) left__ = (a); __typeof__(left__) right__ = (b); left__ < right__ ? left__ : right__; })
#define MAX(a, b) ({ __typeof__(a) left__ = (a); __typeof__(left__) right__ = (b); left__ > right__ ? left__ : right__; })

#ifdef VECTORS
/* 2^x and e^x within 2 units of the last place: 2^n p(f), |f| <= 1/2; infinities and what is too small come out of scalef
   by themselves. */
INLINE __m512 exp2_lanes(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 8), n = _mm512_sub_ps(x, f); /* of an infinity the rest is 0 */
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}
INLINE __m512 exp_lanes(__m512 x) { /* ln 2 taken off in two parts so that large arguments keep their last places */
    x = _mm512_min_ps(_mm512_set1_ps(110), _mm512_max_ps(_mm512_set1_ps(-110), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9841270e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3888889e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3333333e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1666667e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666667e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}
INLINE __m512 sigmoid_lanes(__m512 x) {
    const __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp_lanes(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}
INLINE __m512 tanh_lanes(__m512 x) { /* by a series where e^2x - 1 would lose places */
    const __m512 one = _mm512_set1_ps(1), square = _mm512_mul_ps(x, x);
    const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(10), _mm512_max_ps(_mm512_set1_ps(-10), x)); /* NaN stays */
    const __m512 e = exp_lanes(_mm512_add_ps(bounded, bounded));
    const __m512 large = _mm512_div_ps(_mm512_sub_ps(e, one), _mm512_add_ps(e, one));
    __m512 p = _mm512_fnmadd_ps(square, _mm512_set1_ps(0.13333333f), _mm512_set1_ps(0.33333333f));
    p = _mm512_mul_ps(x, _mm512_fnmadd_ps(square, p, one));
    return _mm512_mask_mov_ps(large, _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0.05f), _CMP_LT_OQ), p);
}
#endif

#if defined(VECTORS) && defined(__linux__) && __GNUC__ >= 9 && !defined(__clang__)
/* Loops call the vector forms, whose names are those of the vector ABI for x86-64 ("e": 16 lanes, "d": 8). */
__attribute__((simd("notinbranch"), const, nothrow)) float exp2_f32(float x);
__attribute__((simd("notinbranch"), const, nothrow)) float exp_f32(float x);
__attribute__((simd("notinbranch"), const, nothrow)) float sigmoid_f32(float x);
__attribute__((simd("notinbranch"), const, nothrow)) float tanh_f32(float x);
#define HIDDEN __attribute__((used, visibility("hidden")))
#define FORMS(name)                                                                                                    \
    HIDDEN __m512 name##_16(__m512 x) __asm__("_ZGVeN16v_" #name "_f32");                                              \
    HIDDEN __m512 name##_16(__m512 x) { return name##_lanes(x); }                                                      \
    HIDDEN __m256 name##_8(__m256 x) __asm__("_ZGVdN8v_" #name "_f32");                                                \
    HIDDEN __m256 name##_8(__m256 x) { return _mm512_castps512_ps256(name##_lanes(_mm512_castps256_ps512(x))); }       \
    HIDDEN __m256 name##_avx(__m256 x) __asm__("_ZGVcN8v_" #name "_f32");                                              \
    HIDDEN __m256 name##_avx(__m256 x) { return name##_8(x); }                                                         \
    HIDDEN __m128 name##_4(__m128 x) __asm__("_ZGVbN4v_" #name "_f32");                                                \
    HIDDEN __m128 name##_4(__m128 x) { return _mm512_castps512_ps128(name##_lanes(_mm512_castps128_ps512(x))); }       \
    HIDDEN float name##_1(float x) __asm__(#name "_f32");                                                              \
    HIDDEN float name##_1(float x) { return _mm512_cvtss_f32(name##_lanes(_mm512_set1_ps(x))); }
FORMS(exp2)
FORMS(exp)
FORMS(sigmoid)
FORMS(tanh)
#else
/* 2^x within 2 units of the last place: 2^n p(f), x = n + f, |f| <= 1/2. No branches, so that loops of it vectorise. */
INLINE float exp2_f32(float x) {
    const float bounded = x < -150.0f ? -150.0f : x > 128.0f ? 128.0f : x;
    const float n = rintf(bounded), f = bounded - n;
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const int32_t half = (int32_t)n / 2, rest = (int32_t)n - half;
    const float y = p * as_float((uint32_t)(half + 127) << 23) * as_float((uint32_t)(rest + 127) << 23);
    return y;
}
/* e^x: ln 2 taken off in two parts so that large arguments keep their last places. */
INLINE float exp_f32(float x) {
    const float bounded = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
    const float n = rintf(bounded * 1.44269504f);
    const float f = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9841270e-4f;
    p = p * f + 1.3888889e-3f;
    p = p * f + 8.3333333e-3f;
    p = p * f + 4.1666667e-2f;
    p = p * f + 1.6666667e-1f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    const int32_t half = (int32_t)n / 2, rest = (int32_t)n - half;
    const float y = p * as_float((uint32_t)(half + 127) << 23) * as_float((uint32_t)(rest + 127) << 23);
    return y;
}
INLINE float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }
INLINE float tanh_f32(float x) {
    const float bounded = x < -10.0f ? -10.0f : x > 10.0f ? 10.0f : x, square = x * x;
    const float e = exp_f32(2.0f * bounded), large = (e - 1.0f) / (e + 1.0f);
    const float small = x * (1.0f - square * (0.33333333f - square * 0.13333333f));
    return fabsf(x) < 0.05f ? small : large;
}
#endif
/* n numbers folded into a. (gcc takes the sums of a vector loop apart lane by lane, one after the other.) */
#ifdef VECTORS
#define FOLD(name, lanes, all, neutral, two)                                                                           \
    INLINE float name(const float *x, int64_t n, float a) {                                                            \
        __m512 s[4];                                                                                                   \
        for (int j = 0; j < 4; j++) s[j] = _mm512_set1_ps(neutral);                                                    \
        int64_t i = 0;                                                                                                 \
        for (; i + 64 <= n; i += 64)                                                                                   \
            for (int j = 0; j < 4; j++) s[j] = lanes(_mm512_loadu_ps(x + i + 16 * j), s[j]);                           \
        for (; i < n; i += 16) {                                                                                       \
            const __mmask16 here = first_lanes(n - i);                                                                 \
            s[0] = lanes(_mm512_mask_loadu_ps(_mm512_set1_ps(neutral), here, x + i), s[0]);                            \
        }                                                                                                              \
        const float v = all(lanes(lanes(s[0], s[1]), lanes(s[2], s[3])));                                              \
        return two;                                                                                                    \
    }
FOLD(fold_sum, _mm512_add_ps, _mm512_reduce_add_ps, 0, v + a)
FOLD(fold_max, _mm512_max_ps, _mm512_reduce_max_ps, -INFINITY, v > a ? v : a)
FOLD(fold_min, _mm512_min_ps, _mm512_reduce_min_ps, INFINITY, v < a ? v : a)
#else
#define FOLD(name, clause, two)                                                                                        \
    INLINE float name(const float *x, int64_t n, float a) {                                                            \
        _Pragma(clause) for (int64_t i = 0; i < n; i++) {                                                              \
            const float v = x[i];                                                                                      \
            a = two;                                                                                                   \
        }                                                                                                              \
        return a;                                                                                                      \
    }
FOLD(fold_sum, "omp simd reduction(+: a)", a + v)
FOLD(fold_max, "omp simd reduction(max: a)", v > a ? v : a)
FOLD(fold_min, "omp simd reduction(min: a)", v < a ? v : a)
#endif

INLINE float rsqrt_f32(float x) { return 1.0f / sqrtf(x); }

/* Memory of one thread, kept from call to call. NULL if there is none left. */
INLINE char *thread_memory(size_t bytes) {
    static _Thread_local char *memory;
    static _Thread_local size_t size;
    if (size < bytes) {
        free(memory);
        memory = NULL, size = 0;
        if (posix_memalign((void **)&memory, 4096, bytes)) return NULL;
        size = bytes;
    }
    return memory;
}
