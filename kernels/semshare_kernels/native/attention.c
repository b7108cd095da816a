// Attention in tiles on a CPU: what `attend_tiles` in tiles/triton_kernel.py does, for the same
// programs. A tile's rows are the sequences that read one run of keys, times the query heads of a
// KV head. With many rows the keys are turned into matrix products, each key read once for all of
// them; with few the keys stream past, all heads of a token at a time, as fast as memory gives them.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "numbers.h"

#ifdef __AVX512F__
#define SUMS 24  // keys × vectors of rows in registers, in a product of keys with rows
#else
#define SUMS 12
#endif
#define ROWS_AT_ONCE 8  // rows × 2 vectors of dimensions in registers
#define BLOCK 48        // keys of a product; a multiple of SUMS
#define WIDTH 96        // most rows of a product
#define DEPTH 272       // most dimensions; no power of two, so that rows don't share cache sets
#define PAUSE 8         // dimensions of a product between asking for rows ahead
#define AHEAD_BYTES 32768  // asked for ahead of a stream of keys; half and twice as many were slower

typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half_of_floats __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#ifdef __FLT16_MAX__
typedef _Float16 float16s __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#endif

enum type { FLOAT32, BFLOAT16, FLOAT16 };

// A tile program with its tables (tiles/program.py), cut into tasks by KV heads (tiles/cpu.py).
typedef struct {
    const char *query, *keys, *values;  // [rows, heads, d], [slots, kv_heads, d] twice
    const float *cos, *sin;             // [keys − first_turned, half], of keys turned on load; or NULL
    float *out, *lse;                   // [rows written, heads, d], [rows written, heads]
    const int64_t *query_at, *slots, *key_at, *tile_row, *tile_rows, *tile_items;
    const int64_t *item_query, *item_start, *item_stop, *item_seen;
    const int64_t *task_tile, *task_head, *task_heads;  // a tile, its first KV head, and how many
    int64_t n_tasks, heads, kv_heads, d, window;
    int64_t first_turned, half;  // keys from here on are turned; dimension j turns with j + half
    int64_t few_rows;  // tiles with so many rows at most read all heads of a token in turn, and turn
                       // no keys
    double scale;
} Work;

// What a task keeps of its rows, for each of its KV heads.
typedef struct {
    int64_t rows, padded;     // rows of the products; to whole vectors, where there are many
    int64_t first_head, span; // KV heads
    float *query;             // scaled: [span, rows, d] if few, else [span, d, WIDTH]
    float *sums;              // [span, padded, d] weighted sums of values
    float *top, *total;       // [span, padded] largest score, in powers of two; sum of weights
    int32_t *at;              // [padded] positions
} Task;

INLINE floats all(float x) { return x - (floats){0}; }
INLINE floats choose(ints mask, floats a, floats b) {
    return (floats)((mask & (ints)a) | (~mask & (ints)b));
}
// The second of two of which the first is NaN.
INLINE floats larger(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE half_of_floats low(floats x) {
    half_of_floats part;
    memcpy(&part, &x, sizeof part);
    return part;
}
INLINE half_of_floats high(floats x) {
    half_of_floats part;
    memcpy(&part, (char *)&x + sizeof part, sizeof part);
    return part;
}
INLINE float sum_of(floats x) {
    half_of_floats half = low(x) + high(x);
    float sum = 0;
    for (int i = 0; i < LANES / 2; i++) sum += half[i];
    return sum;
}
INLINE float max_of(floats x) {
    float top = -INFINITY;  // and never NaN
    for (int i = 0; i < LANES; i++) top = x[i] > top ? x[i] : top;
    return top;
}

INLINE int64_t size_of(enum type type) { return type == FLOAT32 ? 4 : 2; }

// LANES numbers of a row from its element `i` on.
INLINE floats load(const char *row, int64_t i, enum type type) {
    if (type == FLOAT32) return *(const floats *)(row + 4 * i);
    if (type == BFLOAT16) {
        const shorts upper = *(const shorts *)(row + 2 * i);
#ifdef __AVX512F__  // one instruction, where compilers make four of the line below
        return (floats)((words)_mm512_cvtepu16_epi32((__m256i)upper) << 16);
#else
        return (floats)(__builtin_convertvector(upper, words) << 16);
#endif
    }
#ifdef __FLT16_MAX__
    return __builtin_convertvector(*(const float16s *)(row + 2 * i), floats);
#else
    return (floats){0};
#endif
}

// 2^x for x ≤ 0, with a relative error of 2e-7; 0 below 2^−126, NaN of NaN: a key that is not finite
// must not pass for one that is not seen. 2^⌊x⌋ times a polynomial of what is left, fitted to 2^x on
// [0, 1) with the least relative error among those that are 1 at 0.
INLINE floats exp2_of(floats x) {
#ifdef __AVX512DQ__
    const floats left = (floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const ints zero = x < all(-126.0f);
    const floats given = x;
    x = choose(zero, all(-126.0f), x);
    const ints cut = __builtin_convertvector(x, ints);  // toward zero
    const ints whole = cut + ((x < __builtin_convertvector(cut, floats)));
    const floats left = x - __builtin_convertvector(whole, floats);
#endif
    floats p = all(1.86711827e-3f);
    p = p * left + 9.01705524e-3f;
    p = p * left + 5.57998955e-2f;
    p = p * left + 2.40164455e-1f;
    p = p * left + 6.93151311e-1f;
    p = p * left + 1.0f;
#ifdef __AVX512DQ__
    const __mmask16 some = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return (floats)_mm512_maskz_scalef_ps(some, (__m512)p, (__m512)x);
#else
    const floats power = (floats)(~zero & (ints)(p * (floats)((whole + 127) << 23)));
    return choose(given == given, power, given);
#endif
}

static inline float scalar_exp2(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

INLINE const char *row_of(const Work *work, const char *pool, int64_t key, int64_t head,
                          enum type type) {
    return pool + (work->slots[key] * work->kv_heads + head) * work->d * size_of(type);
}

// Ask for a row that will be wanted soon.
INLINE void ask_for(const char *row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

// ---- few rows: one vector of keys at a time, all heads of a token in a row -----------------------

INLINE void few_rows(const Work *work, Task *task, int64_t start, int64_t stop, int64_t seen,
                     float *weights, enum type type) {
    const int64_t d = work->d, rows = task->rows, bytes = d * size_of(type);
    const int64_t tokens = AHEAD_BYTES / (task->span * bytes);
    const int64_t ahead = tokens < 1 ? 1 : tokens < LANES ? tokens : LANES;
    for (int64_t first = start; first < stop; first += LANES) {
        const int64_t n = stop - first < LANES ? stop - first : LANES;
        for (int64_t i = 0; i < n; i++) {
            const int64_t later = first + i + ahead < stop ? first + i + ahead : first + i;
            const char *keys = row_of(work, work->keys, first + i, task->first_head, type);
            const char *next = row_of(work, work->keys, later, task->first_head, type);
            for (int64_t h = 0; h < task->span; h++) {
                ask_for(next + h * bytes, bytes);
                for (int64_t r = h * rows; r < (h + 1) * rows; r++) {
                    floats sum = {0};
                    for (int64_t j = 0; j < d; j += LANES)
                        sum += *(const floats *)(task->query + r * d + j) *
                               load(keys + h * bytes, j, type);
                    weights[r * LANES + i] = sum_of(sum);
                }
            }
        }
        const int masked = first + n > seen;
        for (int64_t r = 0; r < task->span * rows; r++) {
            floats *score = (floats *)(weights + r * LANES);
            for (int64_t i = n; i < LANES; i++) weights[r * LANES + i] = -INFINITY;
            for (int64_t i = 0; masked && i < n; i++) {
                const int64_t distance = task->at[r % rows] - work->key_at[first + i];
                if (distance < 0 || distance >= work->window) weights[r * LANES + i] = -INFINITY;
            }
            const float top = max_of(*score);
            if (top > task->top[r]) {
                const float decay = scalar_exp2(task->top[r] - top);
                for (int64_t j = 0; j < d; j++) task->sums[r * d + j] *= decay;
                task->total[r] *= decay;
                task->top[r] = top;
            }
            // A row that has seen nothing yet: −inf − −inf would be NaN.
            *score = exp2_of(*score - (task->top[r] == -INFINITY ? 0.0f : task->top[r]));
            task->total[r] += sum_of(*score);
        }
        for (int64_t i = 0; i < n; i++) {
            const int64_t later = first + i + ahead < stop ? first + i + ahead : first + i;
            const char *values = row_of(work, work->values, first + i, task->first_head, type);
            const char *next = row_of(work, work->values, later, task->first_head, type);
            for (int64_t h = 0; h < task->span; h++) {
                ask_for(next + h * bytes, bytes);
                for (int64_t j = 0; j < d; j += LANES) {
                    const floats value = load(values + h * bytes, j, type);
                    for (int64_t r = h * rows; r < (h + 1) * rows; r++)
                        *(floats *)(task->sums + r * d + j) += weights[r * LANES + i] * value;
                }
            }
        }
    }
}

// ---- many rows: products of blocks of keys with all rows ------------------------------------------

// Keys first … first + n − 1 of a head as float32 [BLOCK, DEPTH].
INLINE void unpack(const Work *work, const char *pool, int64_t head, int64_t first, int64_t n,
                   float *block, enum type type) {
    for (int64_t i = 0; i < n; i++) {
        const char *row = row_of(work, pool, first + i, head, type);
        for (int64_t j = 0; j < work->d; j += LANES)
            *(floats *)(block + i * DEPTH + j) = load(row, j, type);
    }
}

// Turn the keys of an unpacked block that are turned on load (RoPE, half-split).
static void turn(const Work *work, int64_t first, int64_t n, float *block) {
    for (int64_t key = first; key < first + n; key++) {
        if (key < work->first_turned) continue;
        const float *restrict cos = work->cos + (key - work->first_turned) * work->half;
        const float *restrict sin = work->sin + (key - work->first_turned) * work->half;
        float *restrict low = block + (key - first) * DEPTH;
        float *restrict high = low + work->half;
        for (int64_t j = 0; j < work->half; j++) {
            const float a = low[j], b = high[j];
            low[j] = a * cos[j] - b * sin[j];
            high[j] = b * cos[j] + a * sin[j];
        }
    }
}

// Rows that will be wanted soon. They are asked for a few at a time among the products: a core waits
// for few lines at a time, and all at once would stop it.
typedef struct {
    const char *rows[2 * BLOCK];
    int64_t asked, n, bytes;
} Ahead;

// A block's keys and values of one head.
INLINE void look_ahead(const Work *work, Ahead *ahead, int64_t head, int64_t first, int64_t stop,
                       enum type type) {
    ahead->asked = ahead->n = 0;
    ahead->bytes = work->d * size_of(type);
    for (int64_t key = first; key < first + BLOCK && key < stop; key++) {
        ahead->rows[ahead->n++] = row_of(work, work->keys, key, head, type);
        ahead->rows[ahead->n++] = row_of(work, work->values, key, head, type);
    }
}
INLINE void ask_for_some(Ahead *ahead, int64_t rows) {
    for (; rows > 0 && ahead->asked < ahead->n; rows--)
        ask_for(ahead->rows[ahead->asked++], ahead->bytes);
}

// scores[i, m] = keys[i] · query[:, m] for VECTORS vectors of rows. Strides are constants, so that
// all addresses are one register and a displacement.
#define DEFINE_SCORES(VECTORS)                                                                   \
    static void scores_##VECTORS(const float *keys, const float *query, float *scores,           \
                                 int64_t d, Ahead *ahead) {                                      \
        enum { AT_ONCE = SUMS / VECTORS };                                                       \
        const int64_t pauses = BLOCK / AT_ONCE * d / PAUSE, rows = 2 * BLOCK / pauses + 1;       \
        for (int64_t first = 0; first < BLOCK; first += AT_ONCE) {                               \
            const float *block = keys + first * DEPTH;                                           \
            floats sum[AT_ONCE][VECTORS] = {{{0}}};                                              \
            for (int64_t part = 0; part < d; part += PAUSE) {                                    \
                ask_for_some(ahead, rows);                                                       \
                for (int64_t e = part; e < part + PAUSE; e++)                                    \
                    for (int i = 0; i < AT_ONCE; i++)                                            \
                        for (int v = 0; v < VECTORS; v++)                                        \
                            sum[i][v] += block[i * DEPTH + e] *                                  \
                                         *(const floats *)(query + e * WIDTH + v * LANES);       \
            }                                                                                    \
            for (int i = 0; i < AT_ONCE; i++)                                                    \
                for (int v = 0; v < VECTORS; v++)                                                \
                    *(floats *)(scores + (first + i) * WIDTH + v * LANES) = sum[i][v];           \
        }                                                                                        \
    }

DEFINE_SCORES(1)
DEFINE_SCORES(2)
DEFINE_SCORES(3)

// sums[m, :] += Σ_i weights[i, m] values[i, :] for VECTORS vectors of dimensions.
#define DEFINE_WEIGHTED(VECTORS)                                                                 \
    static void weighted_##VECTORS(const float *weights, const float *values, float *sums,       \
                                   int64_t n, int64_t d, int64_t rows) {                         \
        for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {                           \
            floats sum[ROWS_AT_ONCE][VECTORS];                                                   \
            for (int m = 0; m < ROWS_AT_ONCE; m++)                                               \
                for (int v = 0; v < VECTORS; v++)                                                \
                    sum[m][v] = *(floats *)(sums + (first + m) * d + v * LANES);                 \
            for (int64_t i = 0; i < n; i++)                                                      \
                for (int m = 0; m < ROWS_AT_ONCE; m++)                                           \
                    for (int v = 0; v < VECTORS; v++)                                            \
                        sum[m][v] += weights[i * WIDTH + first + m] *                            \
                                     *(const floats *)(values + i * DEPTH + v * LANES);          \
            for (int m = 0; m < ROWS_AT_ONCE; m++)                                               \
                for (int v = 0; v < VECTORS; v++)                                                \
                    *(floats *)(sums + (first + m) * d + v * LANES) = sum[m][v];                 \
        }                                                                                        \
    }

DEFINE_WEIGHTED(1)
DEFINE_WEIGHTED(2)
DEFINE_WEIGHTED(3)

// Of `left` vectors, how many to take next: never one alone where two and two do.
INLINE int64_t at_once(int64_t left) { return left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3; }

// −inf where a row must not see a key.
INLINE void hide(const Work *work, const Task *task, int64_t first, int64_t n, float *scores) {
    const int32_t window = work->window < INT32_MAX ? (int32_t)work->window : INT32_MAX;
    for (int64_t i = 0; i < n; i++) {
        const int32_t key_at = (int32_t)work->key_at[first + i];
        for (int64_t m = 0; m < task->padded; m += LANES) {
            const ints distance = *(const ints *)(task->at + m) - key_at;
            floats *score = (floats *)(scores + i * WIDTH + m);
            *score = choose((distance < 0) | (distance >= window), all(-INFINITY), *score);
        }
    }
}

// Scores to weights, in place, and what the rows have of earlier blocks to the new maximum.
INLINE void online_softmax(float *weights, int64_t n, Task *task, int64_t head, int64_t d) {
    const int64_t padded = task->padded;
    for (int64_t m = 0; m < padded; m += LANES) {
        floats *before = (floats *)(task->top + head * padded + m);
        floats *total = (floats *)(task->total + head * padded + m);
        floats top = *before;
        for (int64_t i = 0; i < n; i++) top = larger(*(floats *)(weights + i * WIDTH + m), top);
        const floats shift = choose(top == all(-INFINITY), all(0.0f), top);
        const floats decay = exp2_of(*before - shift);
        floats sum = *total * decay;
        for (int64_t i = 0; i < n; i++) {
            floats *weight = (floats *)(weights + i * WIDTH + m);
            *weight = exp2_of(*weight - shift);
            sum += *weight;
        }
        for (int lane = 0; lane < LANES; lane++) {
            if (decay[lane] == 1.0f) continue;
            float *row = task->sums + (head * padded + m + lane) * d;
            for (int64_t j = 0; j < d; j++) row[j] *= decay[lane];
        }
        *before = top;
        *total = sum;
    }
}

INLINE void many_rows(const Work *work, Task *task, int64_t start, int64_t stop, int64_t seen,
                      float *scratch, enum type type) {
    const int64_t d = work->d, padded = task->padded;
    float *block = scratch, *weights = scratch + BLOCK * DEPTH;
    Ahead ahead;
    for (int64_t first = start; first < stop; first += BLOCK) {
        const int64_t n = stop - first < BLOCK ? stop - first : BLOCK;
        for (int64_t h = 0; h < task->span; h++) {
            const float *query = task->query + h * d * WIDTH;
            float *sums = task->sums + h * padded * d;
            unpack(work, work->keys, task->first_head + h, first, n, block, type);
            if (work->cos != NULL) turn(work, first, n, block);
            look_ahead(work, &ahead, task->first_head + h, first + BLOCK, stop, type);
            for (int64_t m = 0, left = padded / LANES; left > 0;) {
                const int64_t vectors = at_once(left);
                (vectors == 1   ? scores_1
                 : vectors == 2 ? scores_2
                                : scores_3)(block, query + m, weights + m, d, &ahead);
                left -= vectors;
                m += vectors * LANES;
            }
            if (first + n > seen) hide(work, task, first, n, weights);
            online_softmax(weights, n, task, h, d);
            unpack(work, work->values, task->first_head + h, first, n, block, type);
            for (int64_t j = 0, left = d / LANES; left > 0;) {
                const int64_t vectors = at_once(left);
                (vectors == 1   ? weighted_1
                 : vectors == 2 ? weighted_2
                                : weighted_3)(weights, block + j, sums + j, n, d, padded);
                left -= vectors;
                j += vectors * LANES;
            }
        }
    }
}

// ---- tiles ----------------------------------------------------------------------------------------

INLINE void read_queries(const Work *work, Task *task, int64_t base, enum type type) {
    const int64_t d = work->d, group = work->heads / work->kv_heads;
    const float scale = (float)(work->scale * 1.4426950408889634);  // scores in powers of two
    const int few = task->rows <= work->few_rows;
    for (int64_t r = 0; r < task->rows; r++) task->at[r] = (int32_t)work->query_at[base + r / group];
    for (int64_t h = 0; h < task->span; h++)
        for (int64_t r = 0; r < task->rows; r++) {
            const int64_t head = (task->first_head + h) * group + r % group;
            const char *row =
                work->query + ((base + r / group) * work->heads + head) * d * size_of(type);
            for (int64_t j = 0; j < d; j += LANES) {
                const floats part = load(row, j, type) * scale;
                if (few)
                    *(floats *)(task->query + (h * task->rows + r) * d + j) = part;
                else
                    for (int i = 0; i < LANES; i++)
                        task->query[(h * d + j + i) * WIDTH + r] = part[i];
            }
        }
}

static void write_results(const Work *work, const Task *task, int64_t first_row) {
    const int64_t d = work->d, group = work->heads / work->kv_heads;
    for (int64_t h = 0; h < task->span; h++)
        for (int64_t r = 0; r < task->rows; r++) {
            const int64_t head = (task->first_head + h) * group + r % group;
            const int64_t at = (first_row + r / group) * work->heads + head;
            const int64_t from = h * task->padded + r;
            const float total = task->total[from];
            const float share = total == 0 ? 0.0f : 1.0f / total;
            for (int64_t j = 0; j < d; j++) work->out[at * d + j] = task->sums[from * d + j] * share;
            work->lse[at] = total == 0 ? -INFINITY
                                       : (task->top[from] + log2f(total)) * 0.6931471805599453f;
        }
}

INLINE int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Numbers of float32 that each task's parts have room for.
typedef struct {
    int64_t queries, sums, state, widest, numbers;
} Room;

static Room room_for(const Work *work) {
    const int64_t d = work->d, group = work->heads / work->kv_heads;
    Room room = {0};
    int64_t queries = 0;
    for (int64_t index = 0; index < work->n_tasks; index++) {
        const int64_t rows = work->tile_rows[work->task_tile[index]] * group;
        const int few = rows <= work->few_rows;
        const int64_t padded = few ? rows : rounded_up(rows, LANES);
        const int64_t kept = padded * work->task_heads[index];
        const int64_t asked = (few ? rows : WIDTH) * work->task_heads[index];
        room.widest = padded > room.widest ? padded : room.widest;
        room.state = kept > room.state ? kept : room.state;
        queries = asked > queries ? asked : queries;
    }
    room.queries = queries * d;
    room.sums = room.state * d;
    const int64_t scratch = BLOCK * (DEPTH + WIDTH) + room.state * LANES;
    room.numbers = room.queries + room.sums + 2 * room.state + scratch;
    return room;
}

INLINE void run_task(const Work *work, int64_t index, const Room *room, float *memory, int32_t *at,
                     enum type type) {
    const int64_t d = work->d, tile = work->task_tile[index];
    const int64_t rows = work->tile_rows[tile] * (work->heads / work->kv_heads);
    const int few = rows <= work->few_rows;
    Task task = {
        .rows = rows,
        .padded = few ? rows : rounded_up(rows, LANES),
        .first_head = work->task_head[index],
        .span = work->task_heads[index],
        .query = memory,
        .sums = memory + room->queries,
        .top = memory + room->queries + room->sums,
        .total = memory + room->queries + room->sums + room->state,
        .at = at,
    };
    float *scratch = task.total + room->state;
    const int64_t kept = task.span * task.padded;
    memset(task.query, 0, (size_t)((few ? kept : task.span * WIDTH) * d) * sizeof(float));
    memset(task.sums, 0, (size_t)(kept * d) * sizeof(float));
    for (int64_t r = 0; r < kept; r++) task.top[r] = -INFINITY, task.total[r] = 0;
    for (int64_t item = work->tile_items[tile]; item < work->tile_items[tile + 1]; item++) {
        const int64_t start = work->item_start[item], stop = work->item_stop[item];
        read_queries(work, &task, work->item_query[item], type);
        if (few)
            few_rows(work, &task, start, stop, work->item_seen[item], scratch, type);
        else
            many_rows(work, &task, start, stop, work->item_seen[item], scratch, type);
    }
    write_results(work, &task, work->tile_row[tile]);
}

// Returns 0, or 1 if memory is short. `d` is a multiple of 16 and at most 256, a tile has at most
// WIDTH rows × heads of a group. One function a type, so that each is compiled for its own.
#define DEFINE_ATTEND(NAME, TYPE)                                                                \
    int attend_tiles_##NAME(const Work *work) {                                                  \
        const Room room = room_for(work);                                                        \
        int failed = 0;                                                                          \
        _Pragma("omp parallel if (work->n_tasks > 1)") {                                         \
            float *memory = malloc((size_t)room.numbers * sizeof(float));                        \
            int32_t *at = calloc((size_t)room.widest + LANES, sizeof(int32_t));                  \
            if (memory == NULL || at == NULL) {                                                  \
                _Pragma("omp atomic write") failed = 1;                                          \
            }                                                                                    \
            _Pragma("omp for schedule(dynamic)")                                                 \
            for (int64_t index = 0; index < work->n_tasks; index++)                              \
                if (memory != NULL && at != NULL)                                                \
                    run_task(work, index, &room, memory, at, TYPE);                              \
            free(memory);                                                                        \
            free(at);                                                                            \
        }                                                                                        \
        return failed;                                                                           \
    }

DEFINE_ATTEND(float32, FLOAT32)
DEFINE_ATTEND(bfloat16, BFLOAT16)
#ifdef __FLT16_MAX__
DEFINE_ATTEND(float16, FLOAT16)
#endif

// Row i is merged from rows parts[offsets[i]] … parts[offsets[i + 1] − 1]; see merge/__init__.py.
void merge_parts(const float *part_out, const float *part_lse, const int64_t *offsets,
                 const int64_t *parts, float *out, float *lse, int64_t n_rows, int64_t heads,
                 int64_t d) {
#pragma omp parallel for schedule(static) if (n_rows > 4)
    for (int64_t index = 0; index < n_rows * heads; index++) {
        const int64_t row = index / heads, head = index % heads;
        float top = -INFINITY, total = 0;
        for (int64_t i = offsets[row]; i < offsets[row + 1]; i++)
            top = fmaxf(top, part_lse[parts[i] * heads + head]);
        const float shift = top == -INFINITY ? 0.0f : top;
        float *restrict result = out + index * d;
        memset(result, 0, (size_t)d * sizeof(float));
        for (int64_t i = offsets[row]; i < offsets[row + 1]; i++) {
            const int64_t from = parts[i] * heads + head;
            const float weight = expf(part_lse[from] - shift);
            const float *restrict part = part_out + from * d;
            total += weight;
            for (int64_t j = 0; j < d; j++) result[j] += weight * part[j];
        }
        for (int64_t j = 0; j < d && total != 0; j++) result[j] /= total;
        lse[index] = total == 0 ? -INFINITY : shift + logf(total);
    }
}
