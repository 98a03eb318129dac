// CUDA's words for a C++ compiler. PER_BLOCK says how a variable is declared that each block has for itself.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>

using std::max;
using std::min;

#define __device__
#define __global__
#define __shared__ PER_BLOCK
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
PER_BLOCK Index threadIdx, blockIdx;
static Index blockDim, gridDim;

inline Index index(unsigned i, const Index& sizes) {
    return {i % sizes.x, i / sizes.x % sizes.y, i / sizes.x / sizes.y};
}

inline float bfloat16_to_float(unsigned short bits) {
    const unsigned whole = (unsigned)bits << 16;
    float x;
    std::memcpy(&x, &whole, 4);
    return x;
}
inline unsigned short float_to_bfloat16(float x) {
    unsigned whole;
    std::memcpy(&whole, &x, 4);
    if (x != x) return 0x7fff;
    return (unsigned short)((whole + 0x7fff + (whole >> 16 & 1)) >> 16);
}
inline float float16_to_float(unsigned short bits) {
    _Float16 x;
    std::memcpy(&x, &bits, 2);
    return (float)x;
}
inline unsigned short float_to_float16(float x) {
    const _Float16 y = (_Float16)x;
    unsigned short bits;
    std::memcpy(&bits, &y, 2);
    return bits;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

// What CUDA would not launch (CUDA C++ Programming Guide, technical specifications per compute capability).
inline void check_launch(unsigned most_threads, const unsigned* grid, const unsigned* block) {
    const unsigned grid_limits[] = {0x7fffffff, 65535, 65535}, block_limits[] = {1024, 1024, 64};
    bool fits = block[0] * block[1] * block[2] <= most_threads;
    for (int i = 0; i < 3; ++i)
        fits = fits && grid[i] && grid[i] <= grid_limits[i] && block[i] && block[i] <= block_limits[i];
    if (fits) return;
    std::fprintf(stderr, "cannot launch %u x %u x %u blocks of %u x %u x %u threads, of which there may be %u\n",
                 grid[0], grid[1], grid[2], block[0], block[1], block[2], most_threads);
    std::abort();
}
