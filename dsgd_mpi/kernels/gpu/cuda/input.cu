// Images from host memory: floats to the activations' type, or bytes normalised, cropped and mirrored on the way.

extern "C" __global__ void narrowed(const float* __restrict__ from, real* __restrict__ to, unsigned count) {
    FOR_EACH(i, count) to[i] = narrow(from[i]);
}

// y = byte scale + shift, per channel. `draws`, if given: for each image the row and column at which its crop begins in
// the image padded by `pad` zero pixels, and whether it is mirrored.
extern "C" __global__ void images_in(const unsigned char* __restrict__ bytes, const int* __restrict__ draws,
                                     const float* __restrict__ scale, const float* __restrict__ shift,
                                     real* __restrict__ to, int n, int h, int w, int c, int pad) {
    FOR_EACH(i, (unsigned)n * h * w * c) {
        const int channel = i % c, image = i / c / w / h;
        int column = i / c % w, row = i / c / w % h;
        if (draws) {
            if (draws[3 * image + 2]) column = w - 1 - column;
            row += draws[3 * image] - pad;
            column += draws[3 * image + 1] - pad;
        }
        float value = 0;
        if (row >= 0 && row < h && column >= 0 && column < w)
            value = fmaf(bytes[(((size_t)image * h + row) * w + column) * c + channel], scale[channel], shift[channel]);
        to[i] = narrow(value);
    }
}
