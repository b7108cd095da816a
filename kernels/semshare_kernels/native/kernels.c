// What torch has no fused operation for: rotations of keys on their way between slots, and nearest
// codes. Plain C that compilers vectorize; each loop over tokens is shared by torch's own threads.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

static inline float from_f32(float x) { return x; }
static inline float to_f32(float x) { return x; }

// Keys [heads, d] of n tokens, read at slots `source` of `from` and written at slots `target` of
// `to`, turned by their angles: cos, sin [n, half], of the planes (j, j + half).
#define DEFINE_TURN(NAME, TYPE, READ, WRITE)                                                     \
    void NAME(const TYPE *from, TYPE *to, const int64_t *source, const int64_t *target,          \
              const float *cos, const float *sin, int64_t n, int64_t heads, int64_t d,           \
              int64_t half) {                                                                    \
        _Pragma("omp parallel for schedule(static) if (n > 64)")                                 \
        for (int64_t i = 0; i < n; i++) {                                                        \
            const float *restrict c = cos + i * half;                                            \
            const float *restrict s = sin + i * half;                                            \
            for (int64_t h = 0; h < heads; h++) {                                                \
                const TYPE *restrict x = from + (source[i] * heads + h) * d;                     \
                TYPE *restrict y = to + (target[i] * heads + h) * d;                             \
                for (int64_t j = 0; j < half; j++) {                                             \
                    float a = READ(x[j]), b = READ(x[j + half]);                                 \
                    y[j] = WRITE(a * c[j] - b * s[j]);                                           \
                    y[j + half] = WRITE(b * c[j] + a * s[j]);                                    \
                }                                                                                \
                memcpy(y + 2 * half, x + 2 * half, (size_t)(d - 2 * half) * sizeof(TYPE));       \
            }                                                                                    \
        }                                                                                        \
    }

DEFINE_TURN(turn_float32, float, from_f32, to_f32)
DEFINE_TURN(turn_bfloat16, uint16_t, from_bf16, to_bf16)

// Rows of `width` bytes from slots `source` of `from` to slots `target` of `to`.
void copy_rows(const char *from, char *to, const int64_t *source, const int64_t *target, int64_t n,
               int64_t width) {
    _Pragma("omp parallel for schedule(static) if (n > 64)")
    for (int64_t i = 0; i < n; i++)
        memcpy(to + target[i] * width, from + source[i] * width, (size_t)width);
}

// For each code the k candidates within `radius` of its centre with the fewest differing bits, ties
// to the nearest to the centre and then to the earlier; -1 where there are fewer. `candidates` are
// word by word, [words, m], so that one word of many candidates is compared at once.
// Returns 0, or 1 if memory is short.
int nearest_codes(const uint64_t *codes, const uint64_t *candidates, const int64_t *centre,
                  int64_t *nearest, int64_t n, int64_t m, int64_t words, int64_t radius,
                  int64_t k) {
    int failed = 0;
    _Pragma("omp parallel if (n > 8)")
    {
        int64_t *rank = malloc((size_t)(m > 0 ? m : 1) * sizeof(int64_t));
        if (rank == NULL) failed = 1;
        _Pragma("omp for schedule(static)")
        for (int64_t i = 0; i < n; i++) {
            if (rank == NULL) continue;
            int64_t low = centre[i] - radius, high = centre[i] + radius + 1;
            low = low < 0 ? 0 : low;
            high = high > m ? m : high;
            for (int64_t c = low; c < high; c++) rank[c] = 0;
            for (int64_t w = 0; w < words; w++) {
                const uint64_t mine = codes[i * words + w];
                const uint64_t *restrict theirs = candidates + w * m;
                for (int64_t c = low; c < high; c++)
                    rank[c] += __builtin_popcountll(mine ^ theirs[c]);
            }
            // Distance, then how far away, in one number.
            for (int64_t c = low; c < high; c++) {
                int64_t away = c - centre[i];
                rank[c] = (rank[c] << 40) + (away < 0 ? -away : away);
            }
            for (int64_t found = 0; found < k; found++) {
                int64_t best = INT64_MAX, place = -1;
                for (int64_t c = low; c < high; c++) best = rank[c] < best ? rank[c] : best;
                for (int64_t c = low; c < high && best < INT64_MAX; c++)
                    if (rank[c] == best) {
                        place = c;
                        rank[c] = INT64_MAX;
                        break;
                    }
                nearest[i * k + found] = place;
            }
        }
        free(rank);
    }
    return failed;
}
