// Softmax cross-entropy with label smoothing, and the sums for the classifier's bias; sums in a fixed order.

#define ROW_THREADS 128

// The sum of (or the largest) `value` over the block, on all its threads.
__device__ inline float over_block(float value, bool largest) {
    __shared__ float all[ROW_THREADS];
    __syncthreads();                        // the previous use is over
    all[threadIdx.x] = value;
    for (unsigned half = ROW_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const float other = all[threadIdx.x + half];
            all[threadIdx.x] = largest ? fmaxf(all[threadIdx.x], other) : all[threadIdx.x] + other;
        }
    }
    __syncthreads();
    return all[0];
}

// One block per image: its loss, and (p - t) / batch times the scale of the loss. Of image i, a share of labels[2][i] / 2^24
// is of class labels[0][i], the rest of labels[1][i].
extern "C" __global__ void cross_entropy(const real* __restrict__ logits, const int* __restrict__ labels,
                                         const float* __restrict__ scaling, real* __restrict__ gradient,
                                         float* __restrict__ losses, int classes, float smoothing) {
    const real* z = logits + (size_t)blockIdx.x * classes;
    const int label = labels[blockIdx.x], other = labels[gridDim.x + blockIdx.x];
    const float share = labels[2 * gridDim.x + blockIdx.x] / 16777216.0f;
    float top = -INFINITY, exponentials = 0, plain = 0;
    for (int k = threadIdx.x; k < classes; k += ROW_THREADS) top = fmaxf(top, wide(z[k]));
    top = over_block(top, true);
    for (int k = threadIdx.x; k < classes; k += ROW_THREADS) {
        exponentials += expf(wide(z[k]) - top);
        plain += wide(z[k]) - top;
    }
    exponentials = over_block(exponentials, false);
    plain = over_block(plain, false);
    const float log_sum = logf(exponentials);
    if (threadIdx.x == 0)
        losses[blockIdx.x] = log_sum - (1 - smoothing) * (share * (wide(z[label]) - top) +
            (1 - share) * (wide(z[other]) - top)) - smoothing * plain / classes;
    if (!gradient) return;
    const float factor = scaling[SCALE] / gridDim.x;
    for (int k = threadIdx.x; k < classes; k += ROW_THREADS) {
        const float target = smoothing / classes + (1 - smoothing) * ((k == label ? share : 0) + (k == other ? 1 - share : 0));
        const float p = expf(wide(z[k]) - top - log_sum);
        gradient[(size_t)blockIdx.x * classes + k] = narrow((p - target) * factor);
    }
}

// One block.
extern "C" __global__ void mean_loss(const float* __restrict__ losses, float* mean, int batch) {
    float sum = 0;
    for (int i = threadIdx.x; i < batch; i += ROW_THREADS) sum += losses[i];
    sum = over_block(sum, false);
    if (threadIdx.x == 0) mean[0] = sum / batch;
}

extern "C" __global__ void column_sums(const real* __restrict__ x, const float* __restrict__ scaling,
                                       float* __restrict__ sums, int rows, int columns) {
    FOR_EACH(c, columns) {
        float sum = 0;
        for (int r = 0; r < rows; ++r) sum += wide(x[(size_t)r * columns + c]);
        sums[c] = sum * scaling[INVERSE_SCALE];
    }
}
