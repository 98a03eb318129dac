// Convolution as a matrix product over pixels gathered on the fly (implicit GEMM), for shapes without a cuDNN engine.
//
//   forward   y  (pixels of y, o)      = x seen through the window (pixels of y, taps c) . w' (taps c, o)
//   data      dx (pixels of x, c)      = dy that saw the pixel     (pixels of x, taps o) . w  (taps o, c)
//   weights   dw (o, taps c)           = dy'                       (o, pixels of y)      . x seen (pixels of y, taps c)
//
// x, y: NHWC; weights inside: (o, taps, c). A block of 256 threads computes a tile of 64 x 64, each thread 4 x 4 of it;
// sums are floats. The depth is split over gridDim.z, each part being written to its own `partial`.

#define TILE 64
#define DEPTH 16

enum { FORWARD, DATA, WEIGHTS };

struct Geometry { int n, h, w, c, o, window, stride, pad, oh, ow; };

struct Pixel { int image, row, column; };

__device__ inline Pixel pixel_of(int index, int height, int width) {
    return {index / (height * width), index / width % height, index % width};
}

// What tap (k, l) of the window sees at a pixel of y.
__device__ inline float seen(const real* x, const Geometry& g, const Pixel& at, int tap, int channel) {
    const int row = at.row * g.stride - g.pad + tap / g.window, column = at.column * g.stride - g.pad + tap % g.window;
    if (row < 0 || row >= g.h || column < 0 || column >= g.w) return 0;
    return wide(x[(((size_t)at.image * g.h + row) * g.w + column) * g.c + channel]);
}

// The gradient of the pixel of y that has seen a pixel of x through a tap, if there is one.
__device__ inline float seeing(const real* dy, const Geometry& g, const Pixel& at, int tap, int out) {
    const int down = at.row + g.pad - tap / g.window, across = at.column + g.pad - tap % g.window;
    const int row = down / g.stride, column = across / g.stride;
    if (down < 0 || across < 0 || down % g.stride || across % g.stride || row >= g.oh || column >= g.ow) return 0;
    return wide(dy[(((size_t)at.image * g.oh + row) * g.ow + column) * g.o + out]);
}

template <int MODE>
__device__ inline void product(const real* left_in, const real* right_in, real* out, float* partial,
                               const Geometry& g) {
    __shared__ float left[DEPTH][TILE + 1], right[DEPTH][TILE + 1];
    const int taps = g.window * g.window, t = threadIdx.x;
    const int rows = MODE == FORWARD ? g.n * g.oh * g.ow : MODE == DATA ? g.n * g.h * g.w : g.o;
    const int columns = MODE == FORWARD ? g.o : MODE == DATA ? g.c : taps * g.c;
    const int depth = MODE == FORWARD ? taps * g.c : MODE == DATA ? taps * g.o : g.n * g.oh * g.ow;
    const int part = (depth + gridDim.z - 1) / gridDim.z, begin = blockIdx.z * part, end = min(begin + part, depth);
    const int row0 = blockIdx.x * TILE, column0 = blockIdx.y * TILE;

    Pixel mine[4];                          // of the rows that this thread loads
    for (int i = 0; MODE != WEIGHTS && i < 4; ++i)
        mine[i] = MODE == FORWARD ? pixel_of(row0 + t / DEPTH + 16 * i, g.oh, g.ow)
                                  : pixel_of(row0 + t / DEPTH + 16 * i, g.h, g.w);
    float sum[4][4] = {};
    for (int k0 = begin; k0 < end; k0 += DEPTH) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int slow = t / DEPTH + 16 * i, fast = t % DEPTH;      // contiguous along the depth,
            const int deep = t / TILE + 4 * i, wide_ = t % TILE;        // or along the tile's side
            if (MODE == FORWARD) {
                const int k = k0 + fast, m = row0 + slow, o = column0 + slow;
                left[fast][slow] = k < end && m < rows ? seen(left_in, g, mine[i], k / g.c, k % g.c) : 0;
                right[fast][slow] = k < end && o < columns ? wide(right_in[(size_t)o * depth + k]) : 0;
            } else if (MODE == DATA) {
                const int k = k0 + fast, m = row0 + slow, q = k0 + deep, c = column0 + wide_;
                left[fast][slow] = k < end && m < rows ? seeing(left_in, g, mine[i], k / g.o, k % g.o) : 0;
                right[deep][wide_] = q < end && c < columns
                    ? wide(right_in[((size_t)(q % g.o) * taps + q / g.o) * g.c + c]) : 0;
            } else {
                const int k = k0 + deep, o = row0 + wide_, c = column0 + wide_;
                left[deep][wide_] = k < end && o < rows ? wide(left_in[(size_t)k * g.o + o]) : 0;
                right[deep][wide_] = k < end && c < columns
                    ? seen(right_in, g, pixel_of(k, g.oh, g.ow), c / g.c, c % g.c) : 0;
            }
        }
        __syncthreads();
        #pragma unroll
        for (int k = 0; k < DEPTH; ++k)
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j)
                    sum[i][j] = fmaf(left[k][t / 16 + 16 * i], right[k][t % 16 + 16 * j], sum[i][j]);
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int row = row0 + t / 16 + 16 * i, column = column0 + t % 16 + 16 * j;
            if (row >= rows || column >= columns) continue;
            const size_t at = (size_t)row * columns + column;
            if (MODE == WEIGHTS) partial[(size_t)blockIdx.z * rows * columns + at] = sum[i][j];
            else out[at] = narrow(sum[i][j]);
        }
}

#define GEOMETRY int n, int h, int w, int c, int o, int window, int stride, int pad, int oh, int ow
#define GIVEN Geometry{n, h, w, c, o, window, stride, pad, oh, ow}

extern "C" __global__ void __launch_bounds__(256)
convolution(const real* __restrict__ x, const real* __restrict__ weights, real* __restrict__ y, GEOMETRY) {
    product<FORWARD>(x, weights, y, nullptr, GIVEN);
}

extern "C" __global__ void __launch_bounds__(256)
convolution_data(const real* __restrict__ dy, const real* __restrict__ weights, real* __restrict__ dx, GEOMETRY) {
    product<DATA>(dy, weights, dx, nullptr, GIVEN);
}

extern "C" __global__ void __launch_bounds__(256)
convolution_weights(const real* __restrict__ dy, const real* __restrict__ x, float* __restrict__ partial, GEOMETRY) {
    product<WEIGHTS>(dy, x, nullptr, partial, GIVEN);
}

// Weights from the flat vector, float (o, c, taps), to here, (out, taps, inside): o <= out and c <= inside, the rest
// being zero. `scale`, if given, multiplies each output channel.
extern "C" __global__ void weights_in(const float* __restrict__ from, const float* __restrict__ scale,
                                      real* __restrict__ to, int o, int c, int taps, int out, int inside) {
    FOR_EACH(i, (unsigned)out * taps * inside) {
        const int channel = i % inside, tap = i / inside % taps, row = i / inside / taps;
        float value = 0;
        if (row < o && channel < c) value = from[((size_t)row * c + channel) * taps + tap] * (scale ? scale[row] : 1);
        to[i] = narrow(value);
    }
}

// Their gradient, back: from the activations' type, or as the sum of `parts` in float.
extern "C" __global__ void weights_out(const real* __restrict__ from, const float* __restrict__ partial, int parts,
                                       const float* __restrict__ scaling, float* __restrict__ to, int o, int c,
                                       int taps, int out, int inside) {
    const size_t all = (size_t)out * taps * inside;
    FOR_EACH(i, (unsigned)o * c * taps) {
        const int tap = i % taps, channel = i / taps % c, row = i / taps / c;
        const size_t at = ((size_t)row * taps + tap) * inside + channel;
        float sum = 0;
        if (partial)
            for (int part = 0; part < parts; ++part) sum += partial[part * all + at];
        else
            sum = wide(from[at]);
        to[i] = sum * scaling[INVERSE_SCALE];
    }
}

// Copies rows, zero-padding or truncating their channels.
extern "C" __global__ void copy_channels(const real* __restrict__ from, real* __restrict__ to, int rows, int before,
                                         int after) {
    FOR_EACH(i, (unsigned)rows * after) {
        const unsigned row = i / after, channel = i % after;
        to[i] = channel < (unsigned)before ? from[(size_t)row * before + channel] : narrow(0);
    }
}

// Batch norm with its running statistics, as a scale and a bias for each output channel of a convolution.
extern "C" __global__ void fold(const float* __restrict__ gamma, const float* __restrict__ beta,
                                const float* __restrict__ mean, const float* __restrict__ var, float* scale,
                                float* bias, int channels) {
    FOR_EACH(c, channels) {
        scale[c] = (float)(gamma[c] / sqrt(var[c] + 1e-5));
        bias[c] = beta[c] - scale[c] * mean[c];
    }
}
