// The optimiser on the flat float vectors, and sums of activations.

#define GROWTH_STEPS 2000                   // without an overflow, after which the loss is scaled twice as much
#define LARGEST_SCALE 16777216.f            // 2^24

// On `count` numbers, the first of which are trained; those behind them are batch norm's running statistics.
extern "C" __global__ void nesterov(float* __restrict__ x, float* __restrict__ v, const float* __restrict__ g,
                                    long long trained, long long count, const float* __restrict__ lr, float momentum,
                                    float decay, float statistics_rate, const float* __restrict__ scaling) {
    if (scaling[OVERFLOW] != 0) return;     // this gradient is lost; the next is scaled less
    const float rate = *lr;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        if (i < trained) {
            const float d = fmaf(decay, x[i], g[i]), velocity = fmaf(momentum, v[i], d);
            v[i] = velocity;
            x[i] -= rate * fmaf(momentum, velocity, d);
        } else {
            x[i] -= statistics_rate * g[i];
        }
    }
}

// Notes whether any number of g is infinite or not a number.
extern "C" __global__ void find_overflow(const float* __restrict__ g, long long count, float* scaling) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    bool found = false;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride)
        found |= !(fabsf(g[i]) < INFINITY);
    if (found) scaling[OVERFLOW] = 1;       // whoever writes, writes the same
}

// One thread, after an update.
extern "C" __global__ void adjust_scale(float* scaling) {
    float scale = scaling[SCALE], good = scaling[GOOD_STEPS] + 1;
    if (scaling[OVERFLOW] != 0) {
        scale = fmaxf(scale / 2, 1);
        good = 0;
    } else if (good >= GROWTH_STEPS) {
        scale = fminf(2 * scale, LARGEST_SCALE);
        good = 0;
    }
    scaling[SCALE] = scale;
    scaling[INVERSE_SCALE] = 1 / scale;
    scaling[OVERFLOW] = 0;
    scaling[GOOD_STEPS] = good;
}

// total += term
extern "C" __global__ void accumulate(real* __restrict__ total, const real* __restrict__ term, unsigned packs) {
    FOR_EACH(i, packs) {
        Pack a = load(total + (size_t)i * VEC);
        const Pack b = load(term + (size_t)i * VEC);
        for (int v = 0; v < VEC; ++v) a.at[v] = narrow(wide(a.at[v]) + wide(b.at[v]));
        store(total + (size_t)i * VEC, a);
    }
}
