// Pooling and the shortcut of option A, VEC channels per thread; every element of a result is written by one thread.

// The taps of the maxima, loaded and stored as one.
struct alignas(VEC) Taps { unsigned char at[VEC]; };

// A line of blocks takes the lines of pixels of all images in turn, whose places are then divided for once a line.
#define FOR_EACH_LINE(line, count) for (int line = blockIdx.y; line < (count); line += gridDim.y)
#define FOR_EACH_IN_LINE(i, count) \
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += gridDim.x * blockDim.x)

// The first maximum in row-major order, whose tap `winner` records for the backward pass.
extern "C" __global__ void max_pool(const real* __restrict__ x, real* __restrict__ y, unsigned char* __restrict__ winner,
                                    int n, int h, int w, int c, int oh, int ow, int window, int stride, int pad) {
    const int groups = c / VEC;
    FOR_EACH_LINE(line, n * oh) {
        const int top = line % oh * stride - pad, image = line / oh;
        FOR_EACH_IN_LINE(i, ow * groups) {
            const int group = i % groups, start = i / groups * stride - pad;
            float best[VEC];
            Taps found;
            for (int v = 0; v < VEC; ++v) {
                best[v] = -INFINITY;
                found.at[v] = 0;
            }
            for (int down = max(0, -top); down < min(window, h - top); ++down)
                for (int across = max(0, -start); across < min(window, w - start); ++across) {
                    const Pack in = load(x + (((size_t)image * h + top + down) * w + start + across) * c + group * VEC);
                    for (int v = 0; v < VEC; ++v)
                        if (wide(in.at[v]) > best[v]) {
                            best[v] = wide(in.at[v]);
                            found.at[v] = (unsigned char)(down * window + across);
                        }
                }
            Pack out;
            for (int v = 0; v < VEC; ++v) out.at[v] = narrow(best[v]);
            const size_t at = ((size_t)line * ow * groups + i) * VEC;
            store(y + at, out);
            if (winner) *reinterpret_cast<Taps*>(winner + at) = found;
        }
    }
}

// From all windows that a pixel is in, the last first: those of which it is the first tap. `term`, if given, is added
// to dy.
extern "C" __global__ void max_pool_gradient(
        const real* __restrict__ dy, const real* __restrict__ term, const unsigned char* __restrict__ winner, real* __restrict__ dx, int n, int h,
        int w, int c, int oh, int ow, int window, int stride, int pad) {
    const int groups = c / VEC;
    FOR_EACH_LINE(line, n * h) {
        const int row = line % h + pad, image = line / h;
        const int first_up = max(0, row - window + stride) / stride, last_up = min(oh - 1, row / stride);
        FOR_EACH_IN_LINE(i, w * groups) {
            const int group = i % groups, column = i / groups + pad;
            const int first_left = max(0, column - window + stride) / stride, last_left = min(ow - 1, column / stride);
            float sum[VEC] = {};
            for (int up = last_up; up >= first_up; --up)
                for (int left = last_left; left >= first_left; --left) {
                    const int tap = (row - up * stride) * window + column - left * stride;
                    const size_t at = (((size_t)image * oh + up) * ow + left) * c + group * VEC;
                    const Pack in = term ? sum_of(load(dy + at), load(term + at)) : load(dy + at);
                    const Taps won = *reinterpret_cast<const Taps*>(winner + at);
                    for (int v = 0; v < VEC; ++v)
                        if (won.at[v] == tap) sum[v] += wide(in.at[v]);
                }
            Pack out;
            for (int v = 0; v < VEC; ++v) out.at[v] = narrow(sum[v]);
            store(dx + ((size_t)line * w * groups + i) * VEC, out);
        }
    }
}

extern "C" __global__ void average_pool(const real* __restrict__ x, real* __restrict__ y, int n, int pixels, int c) {
    const int groups = c / VEC;
    FOR_EACH(i, (unsigned)n * groups) {
        const int group = i % groups, image = i / groups;
        float sum[VEC] = {};
        for (int p = 0; p < pixels; ++p) {
            const Pack in = load(x + ((size_t)image * pixels + p) * c + group * VEC);
            for (int v = 0; v < VEC; ++v) sum[v] += wide(in.at[v]);
        }
        Pack out;
        for (int v = 0; v < VEC; ++v) out.at[v] = narrow(sum[v] / pixels);
        store(y + (size_t)i * VEC, out);
    }
}

extern "C" __global__ void average_pool_gradient(const real* __restrict__ dy, real* __restrict__ dx, int n, int pixels,
                                                 int c) {
    const int groups = c / VEC;
    FOR_EACH(i, (unsigned)n * pixels * groups) {
        const int group = i % groups, image = i / groups / pixels;
        Pack pack = load(dy + (size_t)image * c + group * VEC);
        for (int v = 0; v < VEC; ++v) pack.at[v] = narrow(wide(pack.at[v]) / pixels);
        store(dx + (size_t)i * VEC, pack);
    }
}

// Every second pixel; the c channels of x begin at `first` of y's `after`.
extern "C" __global__ void subsample(const real* __restrict__ x, real* __restrict__ y, int n, int h, int w, int c, int oh,
                                     int ow, int after, int first) {
    FOR_EACH(i, (unsigned)n * oh * ow * after) {
        const int channel = (int)(i % after) - first;
        const int column = i / after % ow, row = i / after / ow % oh, image = i / after / ow / oh;
        const bool there = channel >= 0 && channel < c;
        y[i] = there ? x[(((size_t)image * h + 2 * row) * w + 2 * column) * c + channel] : narrow(0);
    }
}

extern "C" __global__ void subsample_gradient(const real* __restrict__ dy, real* __restrict__ dx, int n, int h, int w,
                                              int c, int oh, int ow, int after, int first) {
    FOR_EACH(i, (unsigned)n * h * w * c) {
        const int channel = i % c, column = i / c % w, row = i / c / w % h, image = i / c / w / h;
        const bool seen = row % 2 == 0 && column % 2 == 0;
        const size_t at = (((size_t)image * oh + row / 2) * ow + column / 2) * after + first + channel;
        dx[i] = seen ? dy[at] : narrow(0);
    }
}
