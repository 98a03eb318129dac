// The activations' type `real` (BITS = 32, or 16 with BFLOAT = 0 or 1), computed with in float, moved VEC at a time.
// No header is included, so that this compiles wherever there is a compiler, and for a CPU too.

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

#if BITS == 32
typedef float real;
__device__ inline float wide(real x) { return x; }
__device__ inline real narrow(float x) { return x; }
#else
struct real { unsigned short bits; };
#ifdef __CUDA_ARCH__
#if BFLOAT
__device__ inline float wide(real x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline real narrow(float x) { real y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
#else
__device__ inline float wide(real x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ inline real narrow(float x) { real y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
#endif
#else
inline float wide(real x) { return BFLOAT ? bfloat16_to_float(x.bits) : float16_to_float(x.bits); }
inline real narrow(float x) { return real{BFLOAT ? float_to_bfloat16(x) : float_to_float16(x)}; }
#endif
#endif

struct alignas(sizeof(real) * VEC) Pack { real at[VEC]; };
__device__ inline Pack load(const real* from) { return *reinterpret_cast<const Pack*>(from); }
__device__ inline void store(real* to, const Pack& pack) { *reinterpret_cast<Pack*>(to) = pack; }

// Their sum, rounded.
__device__ inline Pack sum_of(Pack a, const Pack& b) {
    for (int v = 0; v < VEC; ++v) a.at[v] = narrow(wide(a.at[v]) + wide(b.at[v]));
    return a;
}

// The state of dynamic loss scaling, on the device; 1, 1, 0, 0 without it (Micikevicius et al. 2018).
enum { SCALE, INVERSE_SCALE, OVERFLOW, GOOD_STEPS };

// The elements of each thread of a one-dimensional grid.
#define FOR_EACH(i, count) \
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += gridDim.x * blockDim.x)
