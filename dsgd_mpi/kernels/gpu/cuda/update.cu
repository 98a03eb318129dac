// Optimizers on the flat float vectors, and sums of activations.

#define GROWTH_STEPS 2000                   // without an overflow, after which the scale of the loss is doubled
#define LARGEST_SCALE 16777216.f            // 2^24

// The updates process `count` elements: first the trained parameters, then batch norm's running statistics. `decayed`,
// unless null: 1 for a parameter on which weight decay acts, else 0. A step whose gradient has overflowed is skipped:
// the next is scaled less.

// SGD with Nesterov or heavy-ball momentum.
extern "C" __global__ void sgd(float* __restrict__ x, float* __restrict__ v, const float* __restrict__ g,
                               long long trained, long long count, const float* __restrict__ lr, float momentum,
                               int nesterov, float decay, const float* __restrict__ decayed, float statistics_rate,
                               const float* __restrict__ scaling) {
    if (scaling[OVERFLOW] != 0) return;
    const float rate = *lr;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        if (i < trained) {
            const float d = fmaf(decayed ? decay * decayed[i] : decay, x[i], g[i]), velocity = fmaf(momentum, v[i], d);
            v[i] = velocity;
            x[i] -= rate * (nesterov ? fmaf(momentum, velocity, d) : velocity);
        } else {
            x[i] -= statistics_rate * g[i];
        }
    }
}

// One thread, before each update by AdamW: counts it, and computes the bias corrections of the moving averages.
extern "C" __global__ void adamw_count(double* t, float* corrections, double log_beta1, double log_beta2,
                                       const float* scaling) {
    if (scaling[OVERFLOW] != 0) return;
    const double now = *t + 1;
    *t = now;
    corrections[0] = (float)(-1 / expm1(now * log_beta1));
    corrections[1] = (float)(1 / sqrt(-expm1(now * log_beta2)));
}

// m and v: moving averages of g and of its square; `rest`: 1 - beta.
extern "C" __global__ void adamw(float* __restrict__ x, float* __restrict__ m, float* __restrict__ v,
                                 const float* __restrict__ g, long long trained, long long count,
                                 const float* __restrict__ lr, const float* __restrict__ corrections, float beta1,
                                 float rest1, float beta2, float rest2, float epsilon, float decay,
                                 const float* __restrict__ decayed, float statistics_rate,
                                 const float* __restrict__ scaling) {
    if (scaling[OVERFLOW] != 0) return;
    const float rate = *lr, first = rate * corrections[0], second = corrections[1];
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        if (i < trained) {
            const float mean = fmaf(beta1, m[i], rest1 * g[i]), square = fmaf(beta2, v[i], rest2 * g[i] * g[i]);
            const float keep = 1 - rate * (decayed ? decay * decayed[i] : decay);
            m[i] = mean;
            v[i] = square;
            x[i] = x[i] * keep - first * mean / fmaf(sqrtf(square), second, epsilon);
        } else {
            x[i] -= statistics_rate * g[i];
        }
    }
}

// Records whether any element of g is infinite or NaN.
extern "C" __global__ void find_overflow(const float* __restrict__ g, long long count, float* scaling) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    bool found = false;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride)
        found |= !(fabsf(g[i]) < INFINITY);
    if (found) scaling[OVERFLOW] = 1;       // all threads write the same value
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
        const size_t at = (size_t)i * VEC;
        store(total + at, sum_of(load(total + at), load(term + at)));
    }
}
