// CUDA's words for a C++ compiler, so that the kernels run on a CPU: block after block, the threads of a block being
// fibers, each of which runs until it comes to a barrier. All must come to the same number of barriers. Every second
// launch runs blocks and threads from the last to the first: nothing may depend on their order.

#include <csetjmp>
#include <tuple>

#define PER_BLOCK static                    // one block runs at a time
#include "cuda_words.hpp"

static bool backwards;

// Number `i` of `count` in the order of this launch.
inline unsigned in_order(unsigned i, unsigned count) { return backwards ? count - 1 - i : i; }

inline unsigned atomicInc(unsigned* counter, unsigned last) {
    const unsigned before = *counter;
    *counter = before < last ? before + 1 : 0;
    return before;
}
inline void __threadfence() {}              // all threads are one

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

// most_threads: those of a block, by __launch_bounds__.
template <class... A>
void launch(void (*kernel)(A...), unsigned most_threads, const unsigned* grid, const unsigned* block,
            void** arguments) {
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
