/* y = x W^T for a matrix W most of whose weights are not stored. Chapter 20.

   For one token a product with a matrix does nothing but read it: two operations for each weight, which takes a core
   far less time than getting the weight from memory. So what is not stored is not read, and that is the whole gain.
   What is stored: one bit for each weight says whether it has a value, and the values follow each other, row by row.

       bits     1 0 0 1 1 0 0 0        a byte for eight columns, the lowest bit is the first column
       values   a b c                  the next three of the row
       weights  a 0 0 b c 0 0 0        "expand": what every version below does, eight or sixteen columns at a time

   The three versions differ in how they expand. Portable C visits the bits that are set. AVX2 looks the byte up in a
   table, which says where each value has to go. AVX-512 has an instruction for it. Values are float32, bfloat16, int8,
   or int4 (two in a byte, the lower half first), the integers with a scale for each group of columns; all sums are
   float32. In 2:4 two codes of two bits stand for four columns; a table turns a byte of codes into a byte of bits.
   A dense matrix has all bits set and stores none of them.

   Nothing is allocated, nothing is written but y, and no byte outside of the arrays is read. */

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#endif

enum kind { FLOAT32, BFLOAT16, INT8, INT4 };
enum level { PORTABLE, AVX2, AVX512 };

typedef struct {
    const void *values;     /* of all rows */
    const uint8_t *bits;    /* (rows, row_bytes); NULL: all columns are stored */
    const int64_t *starts;  /* (rows + 1): where the values of each row begin, in values (int4: an even number) */
    const float *scales;    /* (rows, columns / group); NULL: 1 */
    int64_t rows, columns, row_bytes;
    int64_t group;          /* columns that share a scale, a multiple of 8 */
    int32_t kind;
    int32_t codes;          /* whether bits holds the codes of 2:4 */
} matrix;

#define TOKENS 8 /* at most so many at once: each has its own sums in registers, and a weight is expanded once for all */

static uint8_t bits_of_codes[256]; /* a byte of 2:4 codes -> the bits of its eight columns */
static int32_t places[256][8];     /* AVX2: which of the next values goes to each of eight columns */

void minprune_init(void) {
    for (int byte = 0; byte < 256; byte++) {
        bits_of_codes[byte] = (uint8_t)(1 << (byte & 3) | 1 << (byte >> 2 & 3) | 16 << (byte >> 4 & 3) | 16 << (byte >> 6));
        for (int column = 0, next = 0; column < 8; column++) {
            places[byte][column] = byte >> column & 1 ? next : 0;
            next += byte >> column & 1;
        }
    }
}

int minprune_best_level(void) {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi2"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return AVX2;
#endif
    return PORTABLE;
}

static inline uint8_t byte_of(const matrix *W, int64_t row, int64_t byte) {
    int64_t left = W->columns - 8 * byte;
    if (!W->bits)
        return left >= 8 ? 255 : (uint8_t)((1 << left) - 1);
    uint8_t found = W->bits[row * W->row_bytes + byte];
    return W->codes ? bits_of_codes[found] : found;
}

static inline float scale_of(const matrix *W, int64_t row, int64_t column) {
    return W->scales ? W->scales[row * ((W->columns + W->group - 1) / W->group) + column / W->group] : 1.0f;
}

/* The value number `at`, as a float. */
static inline float value_of(const matrix *W, int64_t at) {
    switch (W->kind) {
    case FLOAT32:
        return ((const float *)W->values)[at];
    case BFLOAT16: {
        uint32_t wide = (uint32_t)((const uint16_t *)W->values)[at] << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    case INT8:
        return ((const int8_t *)W->values)[at];
    default: {
        uint8_t pair = ((const uint8_t *)W->values)[at / 2];
        int half = at & 1 ? pair >> 4 : pair & 15;
        return (float)(half < 8 ? half : half - 16);
    }
    }
}

/* ---- portable: visit the bits that are set ---- */

static void rows_portable(const matrix *W, const float *x, int64_t stride, int tokens, float *y, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        float sums[TOKENS] = {0};
        int64_t at = W->starts[row];
        for (int64_t byte = 0; byte < (W->columns + 7) / 8; byte++) {
            float scale = scale_of(W, row, 8 * byte);
            for (unsigned bits = byte_of(W, row, byte); bits; bits &= bits - 1) {
                int64_t column = 8 * byte + __builtin_ctz(bits);
                float weight = scale * value_of(W, at++);
                for (int t = 0; t < tokens; t++)
                    sums[t] += weight * x[t * stride + column];
            }
        }
        for (int t = 0; t < tokens; t++)
            y[t * W->rows + row] = sums[t];
    }
}

#ifdef X86

/* ---- AVX2: eight columns at a time, by the table of places ---- */

#define ISA2 __attribute__((target("avx2,fma"), always_inline)) static inline

/* The next eight values as floats; fewer than eight may be left in the array, which ends at `end`. */
ISA2 __m256 next8(const matrix *W, int64_t at, int64_t end, const int kind) {
    if (end - at < 8) {
        float few[8] = {0};
        for (int64_t i = at; i < end; i++)
            few[i - at] = value_of(W, i);
        return _mm256_loadu_ps(few);
    }
    if (kind == FLOAT32)
        return _mm256_loadu_ps((const float *)W->values + at);
    if (kind == BFLOAT16) {
        __m128i narrow = _mm_loadu_si128((const __m128i *)((const uint16_t *)W->values + at));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
    }
    if (kind == INT8)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const int8_t *)W->values + at))));
    float all[8];
    for (int i = 0; i < 8; i++)
        all[i] = value_of(W, at + i);
    return _mm256_loadu_ps(all);
}

ISA2 float sum8(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

ISA2 void rows_avx2(const matrix *W, const float *x, int64_t stride, const int tokens, const int kind, float *y,
                    int64_t first, int64_t last) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    int64_t end = W->starts[W->rows];
    for (int64_t row = first; row < last; row++) {
        __m256 sums[TOKENS];
        for (int t = 0; t < tokens; t++)
            sums[t] = _mm256_setzero_ps();
        int64_t at = W->starts[row];
        for (int64_t byte = 0; byte < (W->columns + 7) / 8; byte++) {
            uint8_t bits = byte_of(W, row, byte);
            __m256 weights = _mm256_permutevar8x32_ps(next8(W, at, end, kind), _mm256_loadu_si256((const __m256i *)places[bits]));
            __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), bit), bit);
            weights = _mm256_and_ps(weights, _mm256_castsi256_ps(set));
            if (kind >= INT8)
                weights = _mm256_mul_ps(weights, _mm256_set1_ps(scale_of(W, row, 8 * byte)));
            for (int t = 0; t < tokens; t++)
                sums[t] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(x + t * stride + 8 * byte), sums[t]);
            at += __builtin_popcount(bits);
        }
        for (int t = 0; t < tokens; t++)
            y[t * W->rows + row] = sum8(sums[t]);
    }
}

/* ---- AVX-512: sixteen columns at a time, by the instruction that expands while it loads ---- */

#define ISA512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt,bmi2"), always_inline)) static inline

ISA512 __m512 expand16(const matrix *W, int64_t at, __mmask16 mask, const int kind) {
    if (kind == FLOAT32)
        return _mm512_maskz_expandloadu_ps(mask, (const float *)W->values + at);
    if (kind == BFLOAT16) {
        __m256i narrow = _mm256_maskz_expandloadu_epi16(mask, (const uint16_t *)W->values + at);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
    if (kind == INT8)
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_expandloadu_epi8(mask, (const int8_t *)W->values + at)));
    /* int4: as many bytes as hold the values, each split into its halves, and one half dropped if `at` is odd */
    int odd = at & 1, bytes = (odd + __builtin_popcount(mask) + 1) / 2;
    __m128i pairs = _mm_maskz_loadu_epi8((__mmask16)((1 << bytes) - 1), (const uint8_t *)W->values + at / 2);
    __m256i halves = _mm256_cvtepu8_epi16(pairs);
    halves = _mm256_or_si256(_mm256_and_si256(halves, _mm256_set1_epi16(15)), _mm256_slli_epi16(_mm256_srli_epi16(halves, 4), 8));
    if (odd) {
        __m256i carried = _mm256_permute2x128_si256(halves, halves, 0x81);
        halves = _mm256_alignr_epi8(carried, halves, 1);
    }
    __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_expand_epi8(mask, _mm256_castsi256_si128(halves)));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(wide, 28), 28)); /* four bits with their sign */
}

/* Rows are done in stretches that share their scale; a stretch in steps of 64 columns, then of 8. */
ISA512 void rows_avx512(const matrix *W, const float *x, int64_t stride, const int tokens, const int kind, float *y,
                        int64_t first, int64_t last) {
    int64_t bytes = (W->columns + 7) / 8, stretch = kind >= INT8 ? W->group / 8 : bytes;
    for (int64_t row = first; row < last; row++) {
        __m512 sums[TOKENS];
        for (int t = 0; t < tokens; t++)
            sums[t] = _mm512_setzero_ps();
        int64_t at = W->starts[row];
        for (int64_t begin = 0; begin < bytes; begin += stretch) {
            int64_t stop = begin + stretch < bytes ? begin + stretch : bytes, byte = begin;
            __m512 part[4][TOKENS]; /* four sums each, since an addition takes four steps */
            for (int i = 0; i < 4; i++)
                for (int t = 0; t < tokens; t++)
                    part[i][t] = _mm512_setzero_ps();
            for (; byte + 8 <= stop && 8 * byte + 64 <= W->columns; byte += 8) {
                uint64_t bits = ~0ull;
                if (W->codes)
                    for (int i = 0; i < 8; i++)
                        bits = bits >> 8 | (uint64_t)byte_of(W, row, byte + i) << 56;
                else if (W->bits)
                    memcpy(&bits, W->bits + row * W->row_bytes + byte, 8);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    __mmask16 mask = (__mmask16)(bits >> 16 * i);
                    __m512 weights = expand16(W, at, mask, kind);
                    at += __builtin_popcount(mask);
                    for (int t = 0; t < tokens; t++)
                        part[tokens > 2 ? 0 : i][t] = _mm512_fmadd_ps(
                            weights, _mm512_loadu_ps(x + t * stride + 8 * byte + 16 * i), part[tokens > 2 ? 0 : i][t]);
                }
            }
            for (; byte < stop; byte++) {
                uint8_t bits = byte_of(W, row, byte);
                __m512 weights = expand16(W, at, bits, kind);
                at += __builtin_popcount(bits);
                for (int t = 0; t < tokens; t++)
                    part[0][t] = _mm512_fmadd_ps(weights, _mm512_maskz_loadu_ps(255, x + t * stride + 8 * byte), part[0][t]);
            }
            __m512 scale = _mm512_set1_ps(kind >= INT8 ? scale_of(W, row, 8 * begin) : 1.0f);
            for (int t = 0; t < tokens; t++) {
                __m512 sum = part[0][t];
                if (tokens <= 2)
                    sum = _mm512_add_ps(_mm512_add_ps(sum, part[1][t]), _mm512_add_ps(part[2][t], part[3][t]));
                sums[t] = _mm512_fmadd_ps(sum, scale, sums[t]);
            }
        }
        for (int t = 0; t < tokens; t++)
            y[t * W->rows + row] = _mm512_reduce_add_ps(sums[t]);
    }
}

/* One function for each kind and number of tokens, so that the compiler keeps the sums in registers. */
#define FOR_KIND(name, kind)                                                                                           \
    switch (tokens) {                                                                                                  \
    case 1: name(W, x, stride, 1, kind, y, first, last); return;                                                       \
    case 2: name(W, x, stride, 2, kind, y, first, last); return;                                                       \
    case 4: name(W, x, stride, 4, kind, y, first, last); return;                                                       \
    default: name(W, x, stride, 8, kind, y, first, last); return;                                                      \
    }
#define FOR_ALL(name)                                                                                                  \
    switch (W->kind) {                                                                                                 \
    case FLOAT32: FOR_KIND(name, FLOAT32)                                                                              \
    case BFLOAT16: FOR_KIND(name, BFLOAT16)                                                                            \
    case INT8: FOR_KIND(name, INT8)                                                                                    \
    default: FOR_KIND(name, INT4)                                                                                      \
    }

__attribute__((target("avx2,fma"))) static void block_avx2(const matrix *W, const float *x, int64_t stride, int tokens,
                                                           float *y, int64_t first, int64_t last) {
    FOR_ALL(rows_avx2)
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt,bmi2"))) static void
block_avx512(const matrix *W, const float *x, int64_t stride, int tokens, float *y, int64_t first, int64_t last) {
    FOR_ALL(rows_avx512)
}
#endif

static void block(const matrix *W, int level, const float *x, int64_t stride, int tokens, float *y, int64_t first, int64_t last) {
#ifdef X86
    if (level == AVX512) {
        block_avx512(W, x, stride, tokens, y, first, last);
        return;
    }
    if (level == AVX2) {
        block_avx2(W, x, stride, tokens, y, first, last);
        return;
    }
#endif
    (void)level;
    rows_portable(W, x, stride, tokens, y, first, last);
}

#define ROWS 32 /* in a piece of work: small enough to share them out evenly, large enough to stay in one stream */

/* y (tokens, rows) = x W^T; x (tokens, stride), whose columns behind those of W, up to a multiple of 8, are zeros. */
void minprune_product(const matrix *W, int level, const float *x, int64_t stride, int64_t tokens, float *y, int threads) {
    int64_t pieces = (W->rows + ROWS - 1) / ROWS;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t first = piece * ROWS, last = first + ROWS < W->rows ? first + ROWS : W->rows;
        for (int64_t token = 0; token < tokens;) {
            int64_t left = tokens - token;
            int now = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            block(W, level, x + token * stride, stride, now, y + token * W->rows, first, last);
            token += now;
        }
    }
}
