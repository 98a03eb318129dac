// Batch norm [+ add] [ReLU] (Ioffe and Szegedy 2015) on (rows, channels), rows being all pixels of all images.
//
// A block is (x, y) threads: x of them next to each other in a row with VEC channels each, y rows at a time. Sums over
// rows go through one partial sum a block, in a fixed order, so that the same numbers give the same result to the bit.
// What reads again what the pass before has read begins at the end, which is still in the cache.

#define THREADS 256
#define RESIDENT (VEC > 4 ? 2 : 4)            // blocks on a multiprocessor: their registers are bounded accordingly

// c: the first of this thread's channels.
#define CHANNELS const int c = (blockIdx.x * blockDim.x + threadIdx.x) * VEC; const bool mine = c < channels;

// use(r, fetch(r)) for all rows r of this thread's, AHEAD of which are fetched before the first is used: only many loads
// under way keep memory busy, and only so many have room in registers.
#define FEW 2
#define MANY (sizeof(Pack) > 8 ? 2 : 4)
template <int AHEAD, class Fetch, class Use>
__device__ inline void over_rows(int rows, Fetch fetch, Use use) {
    const int step = gridDim.y * blockDim.y;
    for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += AHEAD * step) {
        decltype(fetch(r)) fetched[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (r + k * step < rows) fetched[k] = fetch(r + k * step);
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            if (r + k * step < rows) use(r + k * step, fetched[k]);
    }
}

// Adds a and b over the block's rows; partial: (slabs, 2, channels).
__device__ inline void block_sums(const float* a, const float* b, float* partial, int c, bool mine, int channels) {
    __shared__ float sums[2 * VEC][THREADS];
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    for (int v = 0; v < VEC; ++v) {
        sums[v][t] = a[v];
        sums[VEC + v][t] = b[v];
    }
    for (unsigned half = blockDim.y / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half)
            for (int v = 0; v < 2 * VEC; ++v) sums[v][t] += sums[v][t + half * blockDim.x];
    }
    if (threadIdx.y == 0 && mine)
        for (int v = 0; v < VEC; ++v) {
            partial[(size_t)(2 * blockIdx.y) * channels + c + v] = sums[v][t];
            partial[(size_t)(2 * blockIdx.y + 1) * channels + c + v] = sums[VEC + v][t];
        }
}

// The two sums of channel c over all slabs, on the threads with threadIdx.y = 0; a block has 32 x 16 threads.
__device__ inline void slab_sums(const float* partial, int slabs, int c, int channels, double& a, double& b) {
    __shared__ double sums[2][16][32];
    a = b = 0;
    if (c < channels)
        for (int slab = threadIdx.y; slab < slabs; slab += 16) {
            a += partial[(size_t)(2 * slab) * channels + c];
            b += partial[(size_t)(2 * slab + 1) * channels + c];
        }
    sums[0][threadIdx.y][threadIdx.x] = a;
    sums[1][threadIdx.y][threadIdx.x] = b;
    __syncthreads();
    for (int y = 1; threadIdx.y == 0 && y < 16; ++y) {
        a += sums[0][y][threadIdx.x];
        b += sums[1][y][threadIdx.x];
    }
}

// Sums of x - p and (x - p)^2, p being the first row: near the mean, so that no digits cancel.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_sums(const real* __restrict__ x, float* __restrict__ partial, int rows, int channels) {
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
    block_sums(a, b, partial, c, mine, channels);
}

extern "C" __global__ void batch_norm_statistics(
        const float* __restrict__ partial, int slabs, const real* __restrict__ x, const float* __restrict__ gamma,
        const float* __restrict__ running_mean, const float* __restrict__ running_var, float* mean_gradient,
        float* var_gradient, float* centre, float* inverse, float* scale, int rows, int channels) {
    const int c = blockIdx.x * 32 + threadIdx.x;
    double a, b;
    slab_sums(partial, slabs, c, channels, a, b);
    if (threadIdx.y || c >= channels) return;
    const double shift = a / rows, mean = wide(x[c]) + shift;
    const double var = fmax(b / rows - shift * shift, 0.0);
    centre[c] = (float)mean;
    inverse[c] = (float)(1 / sqrt(var + 1e-5));
    scale[c] = gamma[c] * inverse[c];
    mean_gradient[c] = running_mean[c] - (float)mean;
    var_gradient[c] = running_var[c] - (float)(var * rows / (rows > 1 ? rows - 1 : 1));
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

// y = scale (x - centre) + shift [+ add] [ReLU]; y may be x; centre and scale may be null for 0 and 1.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_apply(const real* x, const float* __restrict__ centre, const float* __restrict__ scale,
                 const float* __restrict__ shift, const real* add, real* y, int rows, int channels, int relu) {
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
        for (int v = 0; v < VEC; ++v) {
            float value = fmaf(wide(row.in.at[v]) - m[v], s[v], b[v]);
            if (add) value += wide(row.add.at[v]);
            out.at[v] = narrow(relu && value < 0 ? 0 : value);
        }
        store(y + place(r), out);
    });
}

// Sums of g and g (x - centre), where g is dy where the ReLU lets it pass: where y > 0, y being computed anew from x
// unless it is given. g is kept where there is a `kept`.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
batch_norm_gradient_sums(const real* __restrict__ dy, const real* __restrict__ x, const real* __restrict__ y,
                         const float* __restrict__ centre, const float* __restrict__ scale,
                         const float* __restrict__ shift, real* __restrict__ kept, float* __restrict__ partial,
                         int rows, int channels, int relu) {
    CHANNELS
    struct Row { Pack in, g, made; };
    float a[VEC] = {}, b[VEC] = {}, m[VEC], s[VEC], z[VEC];
    for (int v = 0; mine && v < VEC; ++v) {
        m[v] = centre[c + v];
        s[v] = scale[c + v];
        z[v] = shift[c + v];
    }
    const auto place = [&](int r) { return (size_t)r * channels + c; };
    if (mine) over_rows<FEW>(rows, [&](int r) {
        Row row;
        row.in = load(x + place(r));
        row.g = load(dy + place(r));
        if (y) row.made = load(y + place(r));
        return row;
    }, [&](int r, Row& row) {
        for (int v = 0; v < VEC; ++v) {
            const float d = wide(row.in.at[v]) - m[v];
            if (relu && !((y ? wide(row.made.at[v]) : fmaf(d, s[v], z[v])) > 0)) row.g.at[v] = narrow(0);
            a[v] += wide(row.g.at[v]);
            b[v] = fmaf(wide(row.g.at[v]), d, b[v]);
        }
        if (kept) store(kept + place(r), row.g);
    });
    block_sums(a, b, partial, c, mine, channels);
}

// The gradients of beta and gamma, and the two numbers a channel that `batch_norm_gradient` takes off.
extern "C" __global__ void batch_norm_gradient_statistics(
        const float* __restrict__ partial, int slabs, const float* __restrict__ inverse,
        const float* __restrict__ scaling, float* gamma_gradient, float* beta_gradient, float* offset, float* slope,
        int rows, int channels) {
    const int c = blockIdx.x * 32 + threadIdx.x;
    double a, b;
    slab_sums(partial, slabs, c, channels, a, b);
    if (threadIdx.y || c >= channels) return;
    b *= inverse[c];
    beta_gradient[c] = (float)(a * scaling[INVERSE_SCALE]);
    gamma_gradient[c] = (float)(b * scaling[INVERSE_SCALE]);
    offset[c] = (float)(a / rows);
    slope[c] = (float)(b * inverse[c] / rows);
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
    over_rows<MANY>(rows, [&](int r) { return Row{load(x + place(r)), load(dy + place(r))}; }, [&](int r, const Row& row) {
        Pack out;
        for (int v = 0; v < VEC; ++v) {
            const float d = wide(row.in.at[v]) - m[v];
            const float g = relu && !(fmaf(d, s[v], z[v]) > 0) ? 0 : wide(row.dy.at[v]);
            out.at[v] = narrow(s[v] * (g - o[v] - d * p[v]));
        }
        store(dx + place(r), out);
    });
}
