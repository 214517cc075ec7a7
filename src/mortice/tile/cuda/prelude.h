// What generated kernels stand on. NVRTC sees no CUDA header, so all of it is here.
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char i8; typedef short i16; typedef int i32; typedef long long i64;
struct alignas(64) CUtensorMap { u64 v[16]; };
#define INLINE static __device__ __forceinline__
#define INF __int_as_float(0x7f800000)
#define NANF __int_as_float(0x7fffffff)

// Narrow floats are bits in memory and f32 in arithmetic; a store rounds to nearest even, fp8 saturates.
struct bf16 { u16 x; }; struct f16 { u16 x; }; struct e4m3 { u8 x; }; struct e5m2 { u8 x; };
INLINE float load(bf16 v) { return __uint_as_float((u32)v.x << 16); }
INLINE float load(f16 v) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.x)); return f; }
#if __CUDA_ARCH__ >= 890
INLINE float load(e4m3 v) { u32 r; asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((u16)v.x)); return load(f16{(u16)r}); }
#else
INLINE float load(e4m3 v) {
  float size = (v.x & 127) == 127 ? NANF : __uint_as_float((u32)(v.x & 127) << 20) * 0x1p120f;
  return v.x & 128 ? -size : size;
}
#endif
INLINE float load(e5m2 v) { return load(f16{(u16)(v.x << 8)}); }
template <class T> INLINE T load(T v) { return v; }
template <class T> struct Rounded { template <class V> static __device__ __forceinline__ T of(V v) { return (T)v; } };
template <> struct Rounded<bf16> { static __device__ __forceinline__ bf16 of(float v) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return bf16{r}; } };
template <> struct Rounded<f16> { static __device__ __forceinline__ f16 of(float v) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return f16{r}; } };
#if __CUDA_ARCH__ >= 890
template <> struct Rounded<e4m3> { static __device__ __forceinline__ e4m3 of(float v) { u16 r; asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(0.f), "f"(v)); return e4m3{(u8)r}; } };
template <> struct Rounded<e5m2> { static __device__ __forceinline__ e5m2 of(float v) { u16 r; asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(0.f), "f"(v)); return e5m2{(u8)r}; } };
#else
// bits: of the fraction; bias: of the exponent; largest: code of the largest number. Below the smallest normal number an
// addition rounds at the last place of what is left.
INLINE u8 fp8(float v, u32 bits, u32 bias, u32 largest, float whole) {
  u32 word = __float_as_uint(v), sign = word >> 24 & 128, size = word & 0x7fffffffu;
  if (size > 0x7f800000u) return (u8)(sign | 127);
  u32 code = size < (128 - bias) << 23
    ? __float_as_uint(__uint_as_float(size) + whole) - __float_as_uint(whole)
    : (size - ((127 - bias) << 23) + (1u << (22 - bits)) - 1 + (size >> (23 - bits) & 1)) >> (23 - bits);
  return (u8)(sign | (code < largest ? code : largest));
}
template <> struct Rounded<e4m3> { static __device__ __forceinline__ e4m3 of(float v) { return e4m3{fp8(v, 3, 7, 0x7e, 0x1p14f)}; } };
template <> struct Rounded<e5m2> { static __device__ __forceinline__ e5m2 of(float v) { return e5m2{fp8(v, 2, 15, 0x7b, 0x1p7f)}; } };
#endif
template <class T, class V> INLINE T rounded(V v) { return Rounded<T>::of(v); }
INLINE float wide_e4m3(u32 v) { return load(e4m3{(u8)v}); }
INLINE float wide_e5m2(u32 v) { return load(e5m2{(u8)v}); }
INLINE u32 narrow_e4m3(float v) { return rounded<e4m3>(v).x; }
INLINE u32 narrow_e5m2(float v) { return rounded<e5m2>(v).x; }
INLINE u32 pack_bf16x2(float lo, float hi) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
INLINE u32 pack_f16x2(float lo, float hi) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
INLINE float low_bf16(u32 v) { return __uint_as_float(v << 16); }
INLINE float high_bf16(u32 v) { return __uint_as_float(v & 0xffff0000u); }
INLINE float low_f16(u32 v) { return load(f16{(u16)v}); }
INLINE float high_f16(u32 v) { return load(f16{(u16)(v >> 16)}); }

// Integers round down, as in Python; floats of the device are approximate to 2 ulp.
INLINE i32 floordiv(i32 a, i32 b) { i32 q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
INLINE i32 floormod(i32 a, i32 b) { i32 r = a % b; return r != 0 && (r < 0) != (b < 0) ? r + b : r; }
INLINE i64 floordiv(i64 a, i64 b) { i64 q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
INLINE i64 floormod(i64 a, i64 b) { i64 r = a % b; return r != 0 && (r < 0) != (b < 0) ? r + b : r; }
INLINE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
INLINE float zero() { float z; asm volatile("mov.f32 %0, 0f00000000;" : "=f"(z)); return z; }
INLINE float sigmoid(float x) { return __fdividef(1.f, 1.f + exp2_fast(-1.4426950408889634f * x)); }
INLINE float least(float a, float b) { return fminf(a, b); }
INLINE float most(float a, float b) { return fmaxf(a, b); }
template <class A> INLINE A least(A a, A b) { return a < b ? a : b; }
template <class A> INLINE A most(A a, A b) { return a > b ? a : b; }

// Where am I.
INLINE u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
INLINE bool elected() {
  u32 p; asm volatile("{ .reg .pred q; elect.sync _|q, 0xffffffff; selp.b32 %0, 1, 0, q; }" : "=r"(p)); return p != 0;
}
INLINE i32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return (i32)r; }

// mbarriers.
INLINE void barrier_init(u32 b, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(count) : "memory"); }
INLINE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INLINE void barrier_expect(u32 b, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(b), "r"(bytes) : "memory"); }
INLINE void barrier_arrive(u32 b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory"); }
INLINE void barrier_arrive_remote(u32 b, u32 rank) {
  asm volatile("{ .reg .b32 r; mapa.shared::cluster.u32 r, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r]; }" :: "r"(b), "r"(rank) : "memory");
}
INLINE void barrier_wait(u32 b, u32 parity) {
  asm volatile("{ .reg .pred p;\nWAIT_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1, 0x989680;\n@!p bra WAIT_%=; }" :: "r"(b), "r"(parity) : "memory");
}

// Asynchronous copies.
INLINE u64 policy_evict_first() { u64 p; asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p)); return p; }
INLINE u64 policy_evict_last() { u64 p; asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p)); return p; }
INLINE void tma_prefetch(const CUtensorMap* m) { asm volatile("prefetch.tensormap [%0];" :: "l"(m) : "memory"); }
INLINE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> INLINE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory"); }
template <int N> INLINE void bulk_wait() { asm volatile("cp.async.bulk.wait_group %0;" :: "n"(N) : "memory"); }
template <int N> INLINE void cp_async(u32 to, const void* from, u32 real) {
  if (N == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(real) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" :: "r"(to), "l"(from), "r"(real), "n"(N) : "memory");
}
INLINE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> INLINE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
INLINE void cp_async_arrive(u32 b) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(b) : "memory"); }

// wgmma.
INLINE u64 descriptor(u32 at, u64 fields) { return (u64)((at & 0x3FFFF) >> 4) | fields; }
INLINE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> INLINE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

// Matrices and vectors between registers and shared memory.
INLINE void stmatrix_4(u32 at, const u32* r) { asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"); }
INLINE void stmatrix_4_transposed(u32 at, const u32* r) { asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"); }
INLINE void ldmatrix_4(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory"); }
INLINE void ldmatrix_4_transposed(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory"); }
INLINE void ldmatrix_2(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory"); }
INLINE void ldmatrix_2_transposed(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory"); }
INLINE void load_shared_2(u32* r, u32 at) { u16 v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory"); r[0] = v; }
INLINE void load_shared_4(u32* r, u32 at) { asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r[0]) : "r"(at) : "memory"); }
INLINE void load_shared_8(u32* r, u32 at) { asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory"); }
INLINE void load_shared_16(u32* r, u32 at) { asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory"); }
INLINE void load_shared_1(u32* r, u32 at) { u32 v; asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at) : "memory"); r[0] = v; }
INLINE void store_shared_1(u32 at, const u32* r) { asm volatile("st.shared.u8 [%0], %1;" :: "r"(at), "r"(r[0]) : "memory"); }
INLINE void store_shared_2(u32 at, const u32* r) { asm volatile("st.shared.u16 [%0], %1;" :: "r"(at), "h"((u16)r[0]) : "memory"); }
INLINE void store_shared_4(u32 at, const u32* r) { asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(r[0]) : "memory"); }
INLINE void store_shared_8(u32 at, const u32* r) { asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(at), "r"(r[0]), "r"(r[1]) : "memory"); }
INLINE void store_shared_16(u32 at, const u32* r) { asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"); }
INLINE void load_global_4(u32* r, const void* p) { r[0] = *(const u32*)p; }
INLINE void load_global_8(u32* r, const void* p) { uint2 v = *(const uint2*)p; r[0] = v.x; r[1] = v.y; }
INLINE void load_global_16(u32* r, const void* p) { uint4 v = *(const uint4*)p; r[0] = v.x; r[1] = v.y; r[2] = v.z; r[3] = v.w; }
INLINE void store_global_4(void* p, const u32* r) { *(u32*)p = r[0]; }
INLINE void store_global_8(void* p, const u32* r) { *(uint2*)p = make_uint2(r[0], r[1]); }
INLINE void store_global_16(void* p, const u32* r) { *(uint4*)p = make_uint4(r[0], r[1], r[2], r[3]); }
INLINE void reduce_add_global_4(void* p, const u32* r) { asm volatile("red.global.add.f32 [%0], %1;" :: "l"(p), "f"(__uint_as_float(r[0])) : "memory"); }

// Order.
INLINE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
INLINE void sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
INLINE void arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
INLINE void sync_warp() { __syncwarp(); }
INLINE void cluster_sync() { asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory"); }
template <int N> INLINE void grow_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> INLINE void shrink_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }
INLINE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
INLINE void wait_dependencies() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
