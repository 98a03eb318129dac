// Batch norm [+ add] [ReLU] (Ioffe and Szegedy 2015) on (rows, channels), rows being all pixels of all images.
//
// A block is (x, y) threads: x adjacent ones in a row with VEC channels each, y rows at a time; y is a power of two.
// Sums over rows go through one partial sum per block, added in a fixed order, so that results are reproducible to the
// bit. A pass that rereads what the previous one has read begins at the end, which is still in the cache.

#define THREADS 512
#define RESIDENT (VEC > 4 ? 1 : 2)          // blocks per multiprocessor: limits their registers

// c: the first of this thread's channels.
#define CHANNELS const int c = (blockIdx.x * blockDim.x + threadIdx.x) * VEC; const bool mine = c < channels;

// use(i, fetch(i)) for i = first, first + step and so on below `end`, COUNT of which are fetched before the first is
// used: it takes many loads in flight to keep memory busy, and registers limit how many. The default unless given.
#ifndef AHEAD
#define AHEAD (sizeof(Pack) > 8 ? 2 : 4)
#endif
#define SOME (AHEAD < 3 ? AHEAD : 3)        // where sums, too, need registers,
#define FEW (AHEAD < 2 ? AHEAD : 2)         // and where a row is of more than two
#define MANY AHEAD
template <int COUNT, class Fetch, class Use>
__device__ inline void fetched_ahead(int first, int end, int step, Fetch fetch, Use use) {
    for (int i = first; i < end; i += COUNT * step) {
        decltype(fetch(i)) fetched[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; ++k)
            if (i + k * step < end) fetched[k] = fetch(i + k * step);
#pragma unroll
        for (int k = 0; k < COUNT; ++k)
            if (i + k * step < end) use(i + k * step, fetched[k]);
    }
}

// All rows of this thread.
template <int COUNT, class Fetch, class Use>
__device__ inline void over_rows(int rows, Fetch fetch, Use use) {
    fetched_ahead<COUNT>(blockIdx.y * blockDim.y + threadIdx.y, rows, gridDim.y * blockDim.y, fetch, use);
}

template <bool B> struct Is { static constexpr bool value = B; };

struct alignas(4 * VEC) Floats { float at[VEC]; };

// Which of VEC elements a ReLU has passed: bit v is set if that of element v was positive.
typedef unsigned char Signs;
static_assert(VEC <= 8, "a bit for each element");

// Adds `a` over the rows of the block; the threads with threadIdx.y = 0 get the sums.
__device__ inline void over_block(double* a) {
    __shared__ double sums[VEC][THREADS];
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    for (int v = 0; v < VEC; ++v) sums[v][t] = a[v];
    for (unsigned half = blockDim.y / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half)
            for (int v = 0; v < VEC; ++v) sums[v][t] += sums[v][t + half * blockDim.x];
    }
    for (int v = 0; v < VEC; ++v) a[v] = sums[v][t];
    __syncthreads();                        // `sums` may be reused
}

// Adds a and b over all blocks: true on the threads that get the sums, those of the last block of its channels to
// arrive. partial: (2, gridDim.y, channels); arrived: (gridDim.x), zero before and, as the last to arrive wraps it,
// after. Each block's part is in memory before the block is counted, so the last one sees all of them (CUDA C++
// Programming Guide, memory fences).
__device__ inline bool over_grid(const float* a, const float* b, float* partial, unsigned* arrived, int c, bool mine,
                                 int channels, double* sum_a, double* sum_b) {
    __shared__ bool last;
    const bool first = threadIdx.y == 0;
    const float* const own[] = {a, b};
    double* const sums[] = {sum_a, sum_b};
    const auto part = [&](int i, int block) {
        return reinterpret_cast<Floats*>(partial + (size_t)(i * gridDim.y + block) * channels + c);
    };
    for (int i = 0; i < 2; ++i) {
        Floats of_block;
        for (int v = 0; v < VEC; ++v) sums[i][v] = own[i][v];
        over_block(sums[i]);
        for (int v = 0; v < VEC; ++v) of_block.at[v] = (float)sums[i][v];
        if (first && mine) *part(i, blockIdx.y) = of_block;
    }
    __threadfence();
    __syncthreads();
    if (first && threadIdx.x == 0) last = atomicInc(&arrived[blockIdx.x], gridDim.y - 1) == gridDim.y - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();
    for (int i = 0; i < 2; ++i) {
        for (int v = 0; v < VEC; ++v) sums[i][v] = 0;
        fetched_ahead<SOME>(threadIdx.y, mine ? gridDim.y : 0, blockDim.y, [&](int block) { return *part(i, block); },
                            [&](int, const Floats& of_block) {
            for (int v = 0; v < VEC; ++v) sums[i][v] += of_block.at[v];
        });
        over_block(sums[i]);
    }
    return first && mine;
}

// From the sums of x - p and (x - p)^2, where p is the first row: near the mean, which avoids cancellation.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_statistics(const real* __restrict__ x, const float* __restrict__ gamma,
                      const float* __restrict__ running_mean, const float* __restrict__ running_var,
                      float* mean_gradient, float* var_gradient, float* centre, float* inverse, float* scale,
                      float* partial, unsigned* arrived, int rows, int channels) {
    CHANNELS
    float a[VEC] = {}, b[VEC] = {}, pivot[VEC] = {};
    if (mine) {
        const Pack first = load(x + c);
        for (int v = 0; v < VEC; ++v) pivot[v] = wide(first.at[v]);
        over_rows<MANY>(rows, [&](int r) { return load(x + (size_t)r * channels + c); }, [&](int, const Pack& in) {
            for (int v = 0; v < VEC; ++v) {
                const float d = wide(in.at[v]) - pivot[v];
                a[v] += d;
                b[v] = fmaf(d, d, b[v]);
            }
        });
    }
    double sum_a[VEC], sum_b[VEC];
    if (!over_grid(a, b, partial, arrived, c, mine, channels, sum_a, sum_b)) return;
    for (int v = 0; v < VEC; ++v) {
        const int at = c + v;
        const double shift = sum_a[v] / rows, mean = pivot[v] + shift;
        const double var = fmax(sum_b[v] / rows - shift * shift, 0.0);
        centre[at] = (float)mean;
        inverse[at] = (float)(1 / sqrt(var + 1e-5));
        scale[at] = gamma[at] * inverse[at];
        mean_gradient[at] = running_mean[at] - (float)mean;
        var_gradient[at] = running_var[at] - (float)(var * rows / (rows > 1 ? rows - 1 : 1));
    }
}

// For inference.
extern "C" __global__ void batch_norm_running(
        const float* __restrict__ gamma, const float* __restrict__ running_mean,
        const float* __restrict__ running_var, float* centre, float* scale, int channels) {
    FOR_EACH(c, channels) {
        centre[c] = running_mean[c];
        scale[c] = (float)(gamma[c] / sqrt(running_var[c] + 1e-5));
    }
}

// y = scale (x - centre) + shift [+ add] [ReLU]; y may be x; centre and scale may be null for 0 and 1. The signs of y
// are stored too, if there is a place for them.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_apply(const real* x, const float* __restrict__ centre, const float* __restrict__ scale,
                 const float* __restrict__ shift, const real* add, real* y, Signs* __restrict__ signs, int rows,
                 int channels, int relu) {
    CHANNELS
    if (!mine) return;
    struct Row { Pack in, add; };
    float m[VEC], s[VEC], b[VEC];
    for (int v = 0; v < VEC; ++v) {
        m[v] = centre ? centre[c + v] : 0;
        s[v] = scale ? scale[c + v] : 1;
        b[v] = shift[c + v];
    }
    const auto place = [&](int r) { return (size_t)(rows - 1 - r) * channels + c; };
    over_rows<MANY>(rows, [&](int r) {
        Row row;
        row.in = load(x + place(r));
        if (add) row.add = load(add + place(r));
        return row;
    }, [&](int r, const Row& row) {
        Pack out;
        Signs positive = 0;
        for (int v = 0; v < VEC; ++v) {
            float value = fmaf(wide(row.in.at[v]) - m[v], s[v], b[v]);
            if (add) value += wide(row.add.at[v]);
            out.at[v] = narrow(relu && value < 0 ? 0 : value);
            positive |= (value > 0) << v;
        }
        store(y + place(r), out);
        if (signs) signs[place(r) / VEC] = positive;
    });
}

// The gradients of beta and gamma, and the two values per channel that `batch_norm_gradient` subtracts, from the sums
// of g and g (x - centre), where g is dy [+ term] masked by the ReLU: that where y > 0, else 0; y is recomputed from x
// unless its signs are given. g is stored in `kept`, if given, which may be dy.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_gradient_statistics(const real* dy, const real* __restrict__ term, const real* __restrict__ x,
                               const Signs* __restrict__ signs, const float* __restrict__ centre,
                               const float* __restrict__ scale, const float* __restrict__ shift,
                               const float* __restrict__ inverse, const float* __restrict__ scaling, real* kept,
                               float* gamma_gradient, float* beta_gradient, float* offset, float* slope, float* partial,
                               unsigned* arrived, int rows, int channels, int relu) {
    CHANNELS
    struct Row { Pack in, g, term; Signs signs; };
    float a[VEC] = {}, b[VEC] = {}, m[VEC], s[VEC], z[VEC];
    for (int v = 0; mine && v < VEC; ++v) {
        m[v] = centre[c + v];
        s[v] = scale[c + v];
        z[v] = shift[c + v];
    }
    const auto place = [&](int r) { return (size_t)r * channels + c; };
    const auto pass = [&](auto more) {      // than two arrays, or else there are registers for more rows
        constexpr bool more_arrays = decltype(more)::value;
        over_rows<more_arrays ? FEW : SOME>(rows, [&](int r) {
            Row row;
            row.in = load(x + place(r));
            row.g = load(dy + place(r));
            if (more_arrays && term) row.term = load(term + place(r));
            if (more_arrays && signs) row.signs = signs[place(r) / VEC];
            return row;
        }, [&](int r, Row& row) {
            if (more_arrays && term) row.g = sum_of(row.g, row.term);
            for (int v = 0; v < VEC; ++v) {
                const float d = wide(row.in.at[v]) - m[v];
                const bool positive = more_arrays && signs ? row.signs >> v & 1 : fmaf(d, s[v], z[v]) > 0;
                if (relu && !positive) row.g.at[v] = narrow(0);
                a[v] += wide(row.g.at[v]);
                b[v] = fmaf(wide(row.g.at[v]), d, b[v]);
            }
            if (kept) store(kept + place(r), row.g);
        });
    };
    if (mine && (term || signs)) pass(Is<true>());
    else if (mine) pass(Is<false>());
    double sum_a[VEC], sum_b[VEC];
    if (!over_grid(a, b, partial, arrived, c, mine, channels, sum_a, sum_b)) return;
    for (int v = 0; v < VEC; ++v) {
        const int at = c + v;
        const double of_normal = sum_b[v] * inverse[at];
        beta_gradient[at] = (float)(sum_a[v] * scaling[INVERSE_SCALE]);
        gamma_gradient[at] = (float)(of_normal * scaling[INVERSE_SCALE]);
        offset[at] = (float)(sum_a[v] / rows);
        slope[at] = (float)(of_normal * inverse[at] / rows);
    }
}

// dx = scale (g - mean g - normal x mean (g normal x))
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_gradient(const real* __restrict__ dy, const real* __restrict__ x, const float* __restrict__ centre,
                    const float* __restrict__ scale, const float* __restrict__ shift,
                    const float* __restrict__ offset, const float* __restrict__ slope, real* __restrict__ dx, int rows,
                    int channels, int relu) {
    CHANNELS
    if (!mine) return;
    struct Row { Pack in, dy; };
    float m[VEC], s[VEC], z[VEC], o[VEC], p[VEC];
    for (int v = 0; v < VEC; ++v) {
        m[v] = centre[c + v];
        s[v] = scale[c + v];
        z[v] = shift[c + v];
        o[v] = offset[c + v];
        p[v] = slope[c + v];
    }
    const auto place = [&](int r) { return (size_t)(rows - 1 - r) * channels + c; };
    const auto fetch = [&](int r) { return Row{load(x + place(r)), load(dy + place(r))}; };
    over_rows<MANY>(rows, fetch, [&](int r, const Row& row) {
        Pack out;
        for (int v = 0; v < VEC; ++v) {
            const float d = wide(row.in.at[v]) - m[v];
            const float g = relu && !(fmaf(d, s[v], z[v]) > 0) ? 0 : wide(row.dy.at[v]);
            out.at[v] = narrow(s[v] * (g - o[v] - d * p[v]));
        }
        store(dx + place(r), out);
    });
}
