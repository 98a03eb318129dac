// Images from host memory: floats to the activations' type, or bytes normalised, cropped and mirrored on the way.
// `to` has `kept` channels, a multiple of VEC: those of the image, and zeros. A thread writes VEC of them at a time.

extern "C" __global__ void narrowed(const float* __restrict__ from, real* __restrict__ to, unsigned rows, int channels,
                                    int kept) {
    const unsigned groups = kept / VEC;
    FOR_EACH(i, rows * groups) {
        const unsigned row = i / groups, first = i % groups * VEC;
        Pack out;
        for (int v = 0; v < VEC; ++v) {
            const int channel = first + v;
            out.at[v] = narrow(channel < channels ? from[(size_t)row * channels + channel] : 0);
        }
        store(to + (size_t)i * VEC, out);
    }
}

// y = byte scale + shift, per channel. `draws`, if given: for each image the row and column at which its crop begins in
// the image padded by `pad` zero pixels, and whether it is mirrored.
extern "C" __global__ void images_in(const unsigned char* __restrict__ bytes, const int* __restrict__ draws,
                                     const float* __restrict__ scale, const float* __restrict__ shift,
                                     real* __restrict__ to, int n, int h, int w, int channels, int kept, int pad) {
    const int groups = kept / VEC;
    FOR_EACH(i, (unsigned)n * h * w * groups) {
        const int first = i % groups * VEC, image = i / groups / w / h;
        int column = i / groups % w, row = i / groups / w % h;
        if (draws) {
            if (draws[3 * image + 2]) column = w - 1 - column;
            row += draws[3 * image] - pad;
            column += draws[3 * image + 1] - pad;
        }
        const bool inside = row >= 0 && row < h && column >= 0 && column < w;
        const size_t pixel = inside ? (((size_t)image * h + row) * w + column) * channels : 0;
        Pack out;
        for (int v = 0; v < VEC; ++v) {
            const int channel = first + v;
            const bool there = inside && channel < channels;
            out.at[v] = narrow(there ? fmaf(bytes[pixel + channel], scale[channel], shift[channel]) : 0);
        }
        store(to + (size_t)i * VEC, out);
    }
}
