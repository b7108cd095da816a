// y = x wᵀ + b for few rows of x on a CPU: most of a decode step of a batch. The weight is read from
// memory once, as torch.nn.Linear keeps it. A core takes a few of its rows at a time and walks over
// their columns, each number times a vector of rows of x, which lies transposed for that. So every
// output is one lane's sum over k in ascending order, whatever other rows there are.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#ifdef __AVX512F__
#define OUTPUTS_AT_ONCE 8  // rows of the weight × 3 vectors of rows of x in registers
#else
#define OUTPUTS_AT_ONCE 4
#endif
#define MAX_VECTORS 3
#define MAX_ROWS 64  // of x
#define MAX_PANELS ((MAX_ROWS / LANES + MAX_VECTORS - 1) / MAX_VECTORS)
#define LINE 64  // bytes of a cache line

enum type { FLOAT32, BFLOAT16 };

INLINE int64_t size_of(enum type type) { return type == FLOAT32 ? 4 : 2; }

INLINE float number(const void *numbers, int64_t i, enum type type) {
    return type == FLOAT32 ? ((const float *)numbers)[i] : from_bf16(((const uint16_t *)numbers)[i]);
}

typedef struct {
    const char *x, *weight, *bias;  // [m, k], [n, k], [n] or NULL
    void *y;                        // [m, n]
    int64_t m, k, n;
} Linear;

// Some rows of x: first … first + width − 1 as [k, width], zeros past the last.
typedef struct {
    int64_t first, vectors;
    float *x;
} Panel;

INLINE int64_t width_of(const Panel *panel) { return panel->vectors * LANES; }

// Rows of x in panels of nearly equal width; returns how many. Each reads the weight once, all but the
// first from a cache.
static int64_t cut(const Linear *work, Panel *panels, float *memory) {
    const int64_t vectors = (work->m + LANES - 1) / LANES;
    const int64_t n_panels = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    for (int64_t p = 0; p < n_panels; p++) {
        const int64_t from = vectors * p / n_panels, to = vectors * (p + 1) / n_panels;
        panels[p] = (Panel){from * LANES, to - from, memory + from * LANES * work->k};
    }
    return n_panels;
}

// Columns first … stop − 1 of x into a panel. Lanes without a row are zero, since memory may hold
// denormal numbers, and those are slow.
INLINE void transpose(const Linear *work, const Panel *panel, int64_t first, int64_t stop,
                      enum type type) {
    const int64_t width = width_of(panel), left = work->m - panel->first;
    if (left < width)
        memset(panel->x + first * width, 0, (size_t)((stop - first) * width) * sizeof(float));
    for (int64_t r = 0; r < width && r < left; r++)
        for (int64_t j = first; j < stop; j++)
            panel->x[j * width + r] = number(work->x, (panel->first + r) * work->k + j, type);
}

// sums[i, :] = Σ_j weight[i, j] x[j, :] for so many outputs i and vectors of a panel. Between the
// products the weight's `next` rows are asked for, if any, line by line in the order they lie in: the
// rows are read side by side, which no CPU foresees, and all lines at once would stop it.
INLINE void products(const char *weight, const char *next, const float *x, float *sums, int64_t k,
                     const int outputs, const int vectors, enum type type) {
    const int64_t size = size_of(type), columns = LINE / size;
    floats sum[OUTPUTS_AT_ONCE][MAX_VECTORS] = {{{0}}};
    float unpacked[OUTPUTS_AT_ONCE][LINE / 2];
    for (int64_t first = 0; first < k; first += columns) {
        const int64_t some = k - first < columns ? k - first : columns;
        for (int i = 0; type != FLOAT32 && i < outputs; i++)
            for (int64_t j = 0; j < some; j++)
                unpacked[i][j] = number(weight, i * k + first + j, type);
        for (int64_t j = 0; j < some; j++) {
            if (next != NULL) __builtin_prefetch(next + (first + j) * outputs * size, 0, 2);
            for (int i = 0; i < outputs; i++) {
                const float w =
                    type == FLOAT32 ? number(weight, i * k + first + j, type) : unpacked[i][j];
                for (int v = 0; v < vectors; v++)
                    sum[i][v] += w * *(const floats *)(x + ((first + j) * vectors + v) * LANES);
            }
        }
    }
    for (int i = 0; i < outputs; i++)
        for (int v = 0; v < vectors; v++)
            *(floats *)(sums + (i * vectors + v) * LANES) = sum[i][v];
}

// Outputs first … first + outputs − 1 of all rows.
INLINE void some_outputs(const Linear *work, const Panel *panels, int64_t n_panels, int64_t first,
                         const int outputs, enum type type) {
    const int64_t k = work->k;
    const char *weight = work->weight + first * k * size_of(type);
    const char *next = weight + outputs * k * size_of(type);
    float sums[OUTPUTS_AT_ONCE * MAX_VECTORS * LANES], bias[OUTPUTS_AT_ONCE];
    for (int i = 0; i < outputs; i++)
        bias[i] = work->bias == NULL ? 0.0f : number(work->bias, first + i, type);
    for (int64_t p = 0; p < n_panels; p++) {
        const Panel *panel = panels + p;
        const char *asked = p == 0 && first + 2 * outputs <= work->n ? next : NULL;
        if (panel->vectors == 1)
            products(weight, asked, panel->x, sums, k, outputs, 1, type);
        else if (panel->vectors == 2)
            products(weight, asked, panel->x, sums, k, outputs, 2, type);
        else
            products(weight, asked, panel->x, sums, k, outputs, 3, type);
        for (int64_t r = 0; r < width_of(panel) && panel->first + r < work->m; r++)
            for (int i = 0; i < outputs; i++) {
                const float y = sums[i * width_of(panel) + r] + bias[i];
                const int64_t at = (panel->first + r) * work->n + first + i;
                if (type == FLOAT32)
                    ((float *)work->y)[at] = y;
                else
                    ((uint16_t *)work->y)[at] = to_bf16(y);
            }
    }
}

// Returns 0, or 1 if memory is short. m is from 1 to MAX_ROWS, k at least 1.
#define DEFINE_LINEAR(NAME, TYPE)                                                                \
    int linear_##NAME(const char *x, const char *weight, const char *bias, char *y, int64_t m,   \
                      int64_t k, int64_t n) {                                                    \
        const Linear work = {x, weight, bias, y, m, k, n};                                       \
        const int64_t columns = LINE / size_of(TYPE), blocks = n / OUTPUTS_AT_ONCE;              \
        const int64_t lines = (m + LINE / 4 - 1) / (LINE / 4) * k;  /* of rows in whole lines */ \
        float *memory = aligned_alloc(LINE, (size_t)(lines * LINE));                             \
        if (memory == NULL) return 1;                                                            \
        Panel panels[MAX_PANELS];                                                                \
        const int64_t n_panels = cut(&work, panels, memory);                                     \
        _Pragma("omp parallel") {                                                                \
            _Pragma("omp for schedule(static)")                                                  \
            for (int64_t first = 0; first < k; first += columns)                                 \
                for (int64_t p = 0; p < n_panels; p++)                                           \
                    transpose(&work, panels + p, first,                                          \
                              first + columns < k ? first + columns : k, TYPE);                  \
            _Pragma("omp for schedule(static) nowait")                                           \
            for (int64_t block = 0; block < blocks; block++)                                     \
                some_outputs(&work, panels, n_panels, block * OUTPUTS_AT_ONCE, OUTPUTS_AT_ONCE,  \
                             TYPE);                                                              \
            _Pragma("omp for schedule(static)")                                                  \
            for (int64_t first = blocks * OUTPUTS_AT_ONCE; first < n; first++)                   \
                some_outputs(&work, panels, n_panels, first, 1, TYPE);                           \
        }                                                                                        \
        free(memory);                                                                            \
        return 0;                                                                                \
    }

DEFINE_LINEAR(float32, FLOAT32)
DEFINE_LINEAR(bfloat16, BFLOAT16)
