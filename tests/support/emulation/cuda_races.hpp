// CUDA's words for ThreadSanitizer, and a program that repeats recorded launches in many orders.
//
// A block is a thread of the system, and its threads are fibers of that. Blocks take turns, drawn at random where it
// may matter, and so do the threads of a block between barriers: pseudo-random, so that every run takes the same. The
// detector knows nothing of these turns: to it all threads run at once, and what orders them is what orders them on a
// GPU (PTX ISA, memory consistency model):
//   - a barrier: what the threads of a block do before it is before what they do after it;
//   - __threadfence(), which is membar.gl and so fence.sc: each is before those that come after it in the order of the
//     run ("a fence.sc operation X synchronizes with a fence.sc operation Y if X precedes Y in the Fence-SC order");
//   - not atomics alone, which are relaxed; but they do not race with one another.

#include <cstdint>
#include <functional>
#include <linux/futex.h>
#include <memory>
#include <sanitizer/tsan_interface.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>
#include <vector>

#define PER_BLOCK static thread_local
#include "cuda_words.hpp"

#define UNSEEN __attribute__((no_sanitize("thread"), noinline))     // by the detector
const unsigned UNORDERED = __tsan_switch_to_fiber_no_sync;

namespace order {
static unsigned long long seed = 1;
static unsigned blocks, patience, turn;     // turn: the block that runs; the less patience, the more often it changes
static std::unique_ptr<bool[]> ended;

UNSEEN unsigned draw(unsigned below) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (seed >> 33) % below;
}

UNSEEN void wait(unsigned block) {
    for (unsigned now; (now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != block;)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
}

UNSEEN void pass() {
    unsigned left = 0, next = 0;
    for (unsigned i = 0; i < blocks; ++i) left += !ended[i];
    if (!left) return;
    for (unsigned skip = draw(left) + 1; skip -= !ended[next]; ++next);
    __atomic_store_n(&turn, next, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, blocks, nullptr, nullptr, 0);
}
}  // namespace order

namespace block {
const size_t STACK_BYTES = 1 << 15;
struct Thread { ucontext_t context; void* fiber; };
static std::vector<void*> fibers;           // made once: each takes a millisecond
PER_BLOCK unsigned number, current, round, ended;
PER_BLOCK Thread* threads;
PER_BLOCK Thread home;
PER_BLOCK char begun, done, barriers[2];    // what the detector takes for synchronisation; of barriers, by turns:
                                            // what is behind the next one must not come before this one
PER_BLOCK const std::function<void()>* body;

// Other blocks may run here, once in `patience` times.
UNSEEN void meet(unsigned patience = order::patience) {
    if (order::draw(patience)) return;
    order::pass();
    order::wait(number);
}

UNSEEN void resume(unsigned thread) {
    current = thread;
    threadIdx = index(thread, blockDim);
    __tsan_switch_to_fiber(threads[thread].fiber, UNORDERED);
    swapcontext(&home.context, &threads[thread].context);
}

UNSEEN void enter() {
    __tsan_acquire(&begun);
    (*body)();
    ++ended;
    __tsan_release(&done);
    __tsan_switch_to_fiber(home.fiber, UNORDERED);
    setcontext(&home.context);
}

UNSEEN void run() {
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    std::vector<Thread> all(count);
    const std::unique_ptr<char[]> stacks(new char[count * STACK_BYTES]);
    std::vector<unsigned> turns(count);
    threads = all.data();
    home.fiber = __tsan_get_current_fiber();
    for (unsigned i = 0; i < count; ++i) {
        turns[i] = i;
        all[i].fiber = fibers[number * count + i];
        getcontext(&all[i].context);
        all[i].context.uc_stack.ss_sp = &stacks[i * STACK_BYTES];
        all[i].context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&all[i].context, enter, 0);
    }
    __tsan_release(&begun);
    for (ended = round = 0; !ended; ++round) {
        for (unsigned i = count; i; --i) {
            std::swap(turns[i - 1], turns[order::draw(i)]);
            resume(turns[i - 1]);
        }
        meet(2);
    }
    if (ended < count) std::abort();
    __tsan_acquire(&done);
}
}  // namespace block

UNSEEN void __syncthreads() {
    __tsan_release(&block::barriers[block::round % 2]);
    __tsan_switch_to_fiber(block::home.fiber, UNORDERED);
    swapcontext(&block::threads[block::current].context, &block::home.context);
    __tsan_acquire(&block::barriers[(block::round - 1) % 2]);
}

UNSEEN void __threadfence() {
    static char fences;
    block::meet();
    __tsan_acquire(&fences);
    __tsan_release(&fences);
    block::meet();
}

inline unsigned atomicInc(unsigned* counter, unsigned last) {
    block::meet();
    unsigned before = __atomic_load_n(counter, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(counter, &before, before < last ? before + 1 : 0, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
    block::meet();
    return before;
}

template <class... A>
void launch(void (*kernel)(A...), unsigned most_threads, const unsigned* grid, const unsigned* sizes,
            void** arguments) {
    check_launch(most_threads, grid, sizes);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {sizes[0], sizes[1], sizes[2]};
    while (block::fibers.size() < (size_t)grid[0] * grid[1] * grid[2] * sizes[0] * sizes[1] * sizes[2])
        block::fibers.push_back(__tsan_create_fiber(0));
    order::blocks = grid[0] * grid[1] * grid[2];
    order::patience = 1 << 4 * order::draw(3);
    order::ended.reset(new bool[order::blocks]());
    order::turn = order::draw(order::blocks);
    const std::function<void()> body = [&] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    std::vector<std::thread> running;
    for (unsigned i = 0; i < order::blocks; ++i)
        running.emplace_back([i, &body] {
            order::wait(block::number = i);
            blockIdx = index(i, gridDim);
            block::body = &body;
            block::run();
            order::ended[i] = true;
            order::pass();
        });
    for (auto& thread : running) thread.join();
}
