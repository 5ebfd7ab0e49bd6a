"""The kernels of a generated C header. ``@`` stands for the prefix of every name, ``@_int`` is the type of integers.

Convolutions and pools have three spatial dimensions, leading ones of size 1 where the model has fewer. ``zero`` is the
zero point, or ``zeros`` one for every element of a sample where it is not NULL. ``T`` is the type of the constants.
"""

from __future__ import annotations

__all__ = ["KERNELS"]

KERNELS: dict[str, str] = {
    "conv": """
typedef struct { int size[3], out[3], kernel[3], stride[3], dilation[3], begin[3], up[3]; } @_window;

/* Position in the input of a tap at an output position, or -1. */
static int @_place(const @_window *w, int d, int out, int tap) {
    int p = out * w->stride[d] - w->begin[d] + tap * w->dilation[d];
    if (p < 0 || p % w->up[d] != 0 || p / w->up[d] >= w->size[d]) return -1;
    return p / w->up[d];
}
""",
    "conv_T": """
static void @_conv_T(const @_int *x, @_int *y, const T *weight, const @_int *bias, @_int zero, const @_int *zeros,
                     int batch, int channels, int outputs, int group, const @_window *w) {
    int per_group = channels / group, per_out = outputs / group;
    int in_size = w->size[0] * w->size[1] * w->size[2];
    int taps = w->kernel[0] * w->kernel[1] * w->kernel[2];
    for (int b = 0; b < batch; b++)
    for (int m = 0; m < outputs; m++) {
        int first = b * channels + (m / per_out) * per_group;
        for (int p = 0; p < w->out[0]; p++)
        for (int q = 0; q < w->out[1]; q++)
        for (int r = 0; r < w->out[2]; r++) {
            @_int sum = bias ? bias[m] : 0;
            for (int i = 0; i < w->kernel[0]; i++) {
                int u = @_place(w, 0, p, i);
                if (u < 0) continue;
                for (int j = 0; j < w->kernel[1]; j++) {
                    int v = @_place(w, 1, q, j);
                    if (v < 0) continue;
                    for (int k = 0; k < w->kernel[2]; k++) {
                        int t = @_place(w, 2, r, k);
                        if (t < 0) continue;
                        int at = (u * w->size[1] + v) * w->size[2] + t;
                        int tap = (i * w->kernel[1] + j) * w->kernel[2] + k;
                        for (int c = 0; c < per_group; c++) {
                            int n = (first + c) * in_size + at;
                            @_int z = zeros ? zeros[n] : zero;
                            sum += (x[n] - z) * (@_int)weight[(m * per_group + c) * taps + tap];
                        }
                    }
                }
            }
            *y++ = sum;
        }
    }
}
""",
    "matmul_T": """
static void @_matmul_T(const @_int *x, @_int *y, const T *weight, const @_int *bias, @_int zero, const @_int *zeros,
                       int rows, int inner, int columns) {
    for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
        @_int sum = bias ? bias[j] : 0;
        for (int k = 0; k < inner; k++) {
            int n = i * inner + k;
            sum += (x[n] - (zeros ? zeros[n] : zero)) * (@_int)weight[k * columns + j];
        }
        *y++ = sum;
    }
}
""",
    "product": """
static void @_product(const @_int *a, const @_int *b, @_int *y, @_int zero_a, const @_int *zeros_a, @_int zero_b,
                      const @_int *zeros_b, int batch, const int32_t *at_a, const int32_t *at_b, int rows, int inner,
                      int columns) {
    for (int n = 0; n < batch; n++)
    for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
        @_int sum = 0;
        for (int k = 0; k < inner; k++) {
            int p = at_a[n] + i * inner + k, q = at_b[n] + k * columns + j;
            sum += (a[p] - (zeros_a ? zeros_a[p] : zero_a)) * (b[q] - (zeros_b ? zeros_b[q] : zero_b));
        }
        *y++ = sum;
    }
}
""",
    "max_pool": """
static void @_max_pool(const @_int *x, @_int *y, const int32_t *signs, int planes, const @_window *w) {
    int in_size = w->size[0] * w->size[1] * w->size[2];
    for (int n = 0; n < planes; n++)
    for (int p = 0; p < w->out[0]; p++)
    for (int q = 0; q < w->out[1]; q++)
    for (int r = 0; r < w->out[2]; r++) {
        int seen = 0;
        @_int best = 0, sign = signs ? signs[n] : 1;
        for (int i = 0; i < w->kernel[0]; i++)
        for (int j = 0; j < w->kernel[1]; j++)
        for (int k = 0; k < w->kernel[2]; k++) {
            int u = @_place(w, 0, p, i), v = @_place(w, 1, q, j), t = @_place(w, 2, r, k);
            if (u < 0 || v < 0 || t < 0) continue;
            @_int one = sign * x[n * in_size + (u * w->size[1] + v) * w->size[2] + t];
            if (!seen || one > best) best = one;
            seen = 1;
        }
        *y++ = sign * best;
    }
}
""",
    "sum_pool": """
static void @_sum_pool(const @_int *x, @_int *y, @_int zero, const @_int *zeros, int planes, const @_window *w) {
    int in_size = w->size[0] * w->size[1] * w->size[2];
    for (int n = 0; n < planes; n++)
    for (int p = 0; p < w->out[0]; p++)
    for (int q = 0; q < w->out[1]; q++)
    for (int r = 0; r < w->out[2]; r++) {
        @_int sum = 0;
        for (int i = 0; i < w->kernel[0]; i++)
        for (int j = 0; j < w->kernel[1]; j++)
        for (int k = 0; k < w->kernel[2]; k++) {
            int u = @_place(w, 0, p, i), v = @_place(w, 1, q, j), t = @_place(w, 2, r, k);
            if (u < 0 || v < 0 || t < 0) continue;
            int at = n * in_size + (u * w->size[1] + v) * w->size[2] + t;
            sum += x[at] - (zeros ? zeros[at] : zero);
        }
        *y++ = sum;
    }
}
""",
    "sum": """
static void @_sum(const @_int *x, @_int *y, @_int zero, const @_int *zeros, int outer, int reduce, int inner) {
    for (int i = 0; i < outer; i++)
    for (int j = 0; j < inner; j++) {
        @_int sum = 0;
        for (int k = 0; k < reduce; k++) {
            int at = (i * reduce + k) * inner + j;
            sum += x[at] - (zeros ? zeros[at] : zero);
        }
        *y++ = sum;
    }
}
""",
    "add": """
static void @_add(const @_int *a, const @_int *b, @_int *y, const int32_t *at_a, const int32_t *at_b,
                  const @_int *zeros_a, const @_int *zeros_b, @_int factor_a, @_int factor_b, int count) {
    for (int n = 0; n < count; n++) {
        int i = at_a ? at_a[n] : n, j = at_b ? at_b[n] : n;
        y[n] = (a[i] - (zeros_a ? zeros_a[n] : 0)) * factor_a + (b[j] - (zeros_b ? zeros_b[n] : 0)) * factor_b;
    }
}
""",
    "mul": """
static void @_mul(const @_int *a, const @_int *b, @_int *y, const int32_t *at_a, const int32_t *at_b,
                  const @_int *zeros_a, const @_int *zeros_b, int count) {
    for (int n = 0; n < count; n++) {
        int i = at_a ? at_a[n] : n, j = at_b ? at_b[n] : n;
        y[n] = (a[i] - (zeros_a ? zeros_a[n] : 0)) * (b[j] - (zeros_b ? zeros_b[n] : 0));
    }
}
""",
    "relu": """
static void @_relu(const @_int *x, @_int *y, @_int zero, const @_int *zeros, int count) {
    for (int i = 0; i < count; i++) {
        @_int z = zeros ? zeros[i] : zero;
        y[i] = x[i] > z ? x[i] : z;
    }
}
""",
    "gather": """
static void @_gather(const @_int *const *x, const int32_t *ends, @_int *y, const int32_t *table, @_int fill,
                     int count) {
    for (int i = 0; i < count; i++) {
        int at = table[i], n = 0, start = 0;
        if (at < 0) { y[i] = fill; continue; }
        while (at >= ends[n]) start = ends[n++];
        y[i] = x[n][at - start];
    }
}
""",
    "threshold": """
/* low + step * number of thresholds <= sign * x, by bisection. The row of element i is rows[i / inner % period]. */
static void @_threshold(const @_int *x, @_int *y, const @_int *thresholds, int levels, const int32_t *rows, int inner,
                        int period, const int32_t *signs, int low, int step, int count) {
    for (int i = 0; i < count; i++) {
        int row = rows[i / inner % period], below = 0, above = levels;
        const @_int *t = thresholds + (int64_t)row * levels;
        @_int value = signs[row] * x[i];
        while (below < above) {
            int middle = (below + above) / 2;
            if (t[middle] <= value) below = middle + 1; else above = middle;
        }
        y[i] = low + step * below;
    }
}
""",
    "table_T": """
static void @_table_T(const @_int *x, @_int *y, const T *table, int width, const int32_t *rows, int inner, int period,
                      const @_int *lows, int count) {
    for (int i = 0; i < count; i++) {
        int row = rows[i / inner % period];
        y[i] = table[(int64_t)row * width + (x[i] - lows[row])];
    }
}
""",
    "pairs_T": """
static void @_pairs_T(const @_int *a, const @_int *b, @_int *y, const T *table, int width, const int32_t *at_a,
                      const int32_t *at_b, @_int low_a, @_int low_b, int count) {
    for (int n = 0; n < count; n++) {
        int i = at_a ? at_a[n] : n, j = at_b ? at_b[n] : n;
        y[n] = table[(a[i] - low_a) * width + (b[j] - low_b)];
    }
}
""",
    "multiplier": """
/* clamp(round((x * multiplier + offset) / 2^shift)). mode 0: to nearest, ties to even; 1: up; 2: down; 3: towards 0.
   >> of a negative number is arithmetic, as in every compiler that matters. */
static void @_multiplier(const @_int *x, @_int *y, const int64_t *table, const int32_t *rows, int inner, int period,
                         int mode, int count) {
    for (int i = 0; i < count; i++) {
        const int64_t *r = table + 5 * rows[i / inner % period];
        int64_t v = (int64_t)x[i] * r[0] + r[2], code = v >> r[1], rest = v - code * ((int64_t)1 << r[1]);
        int64_t half = (int64_t)1 << (r[1] - 1);
        if (mode == 0) code += rest > half || (rest == half && (code & 1));
        if (mode == 1) code += rest > 0;
        if (mode == 3) code += rest > 0 && code < 0;
        y[i] = (@_int)(code < r[3] ? r[3] : code > r[4] ? r[4] : code);
    }
}
""",
}
