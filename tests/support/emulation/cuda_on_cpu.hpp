// CUDA's words for a C++ compiler, so that the kernels run on a CPU: block after block, the threads of a block being
// fibers, each of which runs until it comes to a barrier. All must come to the same number of barriers. Every second
// launch runs blocks and threads from the last to the first: nothing may depend on their order.

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>

using std::max;
using std::min;

#define __device__
#define __global__
#define __shared__ static                   // one block runs at a time
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static bool backwards;

// Number `i` of `count` in the order of this launch.
inline unsigned in_order(unsigned i, unsigned count) { return backwards ? count - 1 - i : i; }

inline Index index(unsigned i, const Index& sizes) {
    return {i % sizes.x, i / sizes.x % sizes.y, i / sizes.x / sizes.y};
}

inline unsigned atomicAdd(unsigned* counter, unsigned more) {
    const unsigned before = *counter;
    *counter += more;
    return before;
}
inline void __threadfence() {}              // all threads are one

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

namespace fibers {
const unsigned LIMIT = 1024, STACK_BYTES = 1 << 16;
enum { RESUMED, AT_BARRIER, ENDED };
static char* stacks = static_cast<char*>(std::malloc((size_t)LIMIT * STACK_BYTES));
static jmp_buf scheduler, waiting[LIMIT];
static ucontext_t fresh;
static unsigned current, barriers[LIMIT];
static void (*body)(void*);
static void* argument;

inline void enter() {
    body(argument);
    longjmp(scheduler, ENDED);
}

// Runs thread `current` up to its next barrier or its end.
inline int resume(bool first) {
    const int came = setjmp(scheduler);
    if (came != RESUMED) return came;
    if (!first) longjmp(waiting[current], 1);
    getcontext(&fresh);
    fresh.uc_stack.ss_sp = stacks + (size_t)current * STACK_BYTES;
    fresh.uc_stack.ss_size = STACK_BYTES;
    fresh.uc_link = nullptr;
    makecontext(&fresh, enter, 0);
    setcontext(&fresh);
    std::abort();
}

inline void place(unsigned thread) {
    current = thread;
    threadIdx = index(thread, blockDim);
}

inline void run_block() {
    static unsigned count, ended, thread, round;        // static: setjmp would lose them
    count = blockDim.x * blockDim.y * blockDim.z;
    for (ended = round = 0; ended == 0; ++round) {
        for (thread = 0; thread < count; ++thread) {
            place(in_order(thread, count));
            if (resume(round == 0) == ENDED) ++ended;
        }
        if (ended && ended < count) {
            std::fprintf(stderr, "%u of %u threads ended while others wait at barrier %u\n", ended, count, round);
            std::abort();
        }
    }
}
}  // namespace fibers

inline void __syncthreads() {
    if (!setjmp(fibers::waiting[fibers::current])) longjmp(fibers::scheduler, fibers::AT_BARRIER);
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
    std::fprintf(stderr, "cannot launch %u x %u x %u blocks of %u x %u x %u threads, of which there may be %u\n", grid[0],
                 grid[1], grid[2], block[0], block[1], block[2], most_threads);
    std::abort();
}

// most_threads: those of a block, by __launch_bounds__.
template <class... A>
void launch(void (*kernel)(A...), unsigned most_threads, const unsigned* grid, const unsigned* block, void** arguments) {
    check_launch(most_threads, grid, block);
    static std::tuple<void (*)(A...), void**> what;
    what = {kernel, arguments};
    fibers::body = [](void* given) {
        auto& [f, in] = *static_cast<decltype(what)*>(given);
        call(f, in, std::index_sequence_for<A...>());
    };
    fibers::argument = &what;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    backwards = !backwards;
    for (unsigned block = 0, blocks = grid[0] * grid[1] * grid[2]; block < blocks; ++block) {
        blockIdx = index(in_order(block, blocks), gridDim);
        fibers::run_block();
    }
}
