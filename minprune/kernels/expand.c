/* y = x W^T for a matrix W most of whose weights are not stored. Chapter 20.

   For one token a product with a matrix does nothing but read it: two operations for each weight, which takes a core
   far less time than getting the weight from memory. So what is not stored is not read, and that is the whole gain.
   What is stored: one bit for each weight says whether it has a value, and the values follow each other, row by row.

       bits     1 0 0 1 1 0 0 0        a byte for eight columns, the lowest bit is the first column
       values   a b c                  the next three of the row
       weights  a 0 0 b c 0 0 0        "expand": what every version below does, eight or sixteen columns at a time

   The three versions differ in how they expand. Portable C visits the bits that are set. AVX2 looks the byte up in a
   table, which says where each value has to go. AVX-512 has an instruction for it. Values are float32, bfloat16, int8,
   or int4 (two in a byte, the lower half first), the integers with a scale for each group of columns. Sums are float32;
   AVX-512 adds integers as integers, until their scale changes. In 2:4 two codes of two bits stand for four columns. A
   dense matrix has all bits set and stores none of them.

   Nothing is allocated, nothing is written but y and room, and no byte outside of the arrays is read. */

#include <stdint.h>
#include <string.h>
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bits of 64 columns are read as one number, lowest byte first"
#endif
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
    const int32_t *groups;  /* (columns / 8, up to a multiple of 8): which of its row's scales each eight columns have */
    int64_t rows, columns, row_bytes;
    int64_t group;          /* columns that share a scale, a multiple of 8 */
    int32_t kind;
    int32_t codes;          /* whether bits holds the codes of 2:4 */
} matrix;

#define TOKENS 8  /* at most so many at once: each has its own sums in registers, and a weight is expanded once for all */
#define STREAMS 4  /* rows at once, far apart: a core reads four streams of memory faster than one, see `walk` */
#define CHUNK 1024 /* columns whose bits are read before their values */
#define BESIDE 16  /* floats behind a token's inputs, of which the first is their unit, see `whole_inputs` */
#define AHEAD 4096 /* bytes: how far ahead of the reading each stream asks for its memory, see `ask` */

static int8_t overlaps[64];    /* AVX-512: bytes 0 to 7, 4 to 11, 8 to 15, ..., see `whole64` */
static int32_t places[256][8]; /* AVX2: which of the next values goes to each of eight columns */

void minprune_init(void) {
    for (int i = 0; i < 64; i++)
        overlaps[i] = (int8_t)(i / 8 * 4 + i % 8);
    for (int byte = 0; byte < 256; byte++)
        for (int column = 0, next = 0; column < 8; column++) {
            places[byte][column] = byte >> column & 1 ? next : 0;
            next += byte >> column & 1;
        }
}

int minprune_best_level(void) {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt"))
        return AVX2;
#endif
    return PORTABLE;
}

/* Asks for a line of memory that is read soon, so that it is on its way while others are computed with. It goes to the
   second cache: the first can wait for few lines at once, too few to keep a memory busy. */
static inline void ask(uintptr_t place) { __builtin_prefetch((const void *)place, 0, 2); }

/* The bits of a row's columns begin..end, 64 in a word: one where a value is stored. At most CHUNK columns. */
static void read_bits(const matrix *W, int64_t row, int64_t begin, int64_t end, uint64_t words[CHUNK / 64]) {
    int64_t count = (end - begin + 63) / 64, bytes = (end - begin + 7) / 8;
    const uint8_t *from = W->bits + row * W->row_bytes + begin / 8;
    if (!W->bits)
        memset(words, 255, (size_t)(8 * count));
    else {
        words[count - 1] = 0;
        memcpy(words, from, (size_t)bytes);
        for (uintptr_t line = 0; line < CHUNK / 8; line += 64) /* and those of a chunk to come */
            ask((uintptr_t)from + CHUNK / 2 + line);
    }
    if (W->codes) /* two codes are 4 of 64 bits; which of four columns they name is worked out for all 16 at once */
        for (int64_t i = 0; i < count; i++) {
            const uint64_t ones = 0x1111111111111111ull;
            uint64_t a0 = words[i] & ones, a1 = words[i] >> 1 & ones, b0 = words[i] >> 2 & ones, b1 = words[i] >> 3 & ones;
            words[i] = (~(a0 | a1) & ones) | (~(b0 | b1) & ones) | ((a0 & ~a1) | (b0 & ~b1)) << 1 |
                       ((a1 & ~a0) | (b1 & ~b0)) << 2 | ((a0 & a1) | (b0 & b1)) << 3;
        }
    if ((end - begin) % 64)
        words[count - 1] &= (1ull << (end - begin) % 64) - 1;
}

/* The value number `at`, as a float. */
static inline float value_of(const matrix *W, int64_t at, const int kind) {
    switch (kind) {
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
        int pair = ((const uint8_t *)W->values)[at / 2];
        return (float)((int8_t)(pair << 4 * (1 - at % 2)) >> 4); /* up, and down with the sign: a branch would be guessed wrong */
    }
    }
}

/* All lines that 64 columns have at most. */
static inline void ask_ahead(const matrix *W, int64_t at, const int kind) {
    const uintptr_t place = (uintptr_t)at, lines = kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1;
    const uintptr_t step = kind == FLOAT32 ? 4 * place : kind == BFLOAT16 ? 2 * place : kind == INT8 ? place : place / 2;
    for (uintptr_t line = 0; line < lines; line++)
        ask((uintptr_t)W->values + step + AHEAD + 64 * line);
}

/* Each version below multiplies `rows` rows, which are `apart` from each other, with `tokens` tokens at once. */
#define BEGIN_NUMBERS                                                                                                  \
    int64_t at[STREAMS], number[STREAMS];                                                                              \
    UNROLLED for (int r = 0; r < rows; r++) {                                                                          \
        number[r] = row + r * apart < last ? row + r * apart : last - 1; /* the last row again rather than none */     \
        at[r] = W->starts[number[r]];                                                                                  \
    }
#define BEGIN_ROWS                                                                                                     \
    BEGIN_NUMBERS                                                                                                      \
    const int scaled = kind >= INT8 && W->scales;                                                                      \
    const int64_t per_row = scaled ? (W->columns + W->group - 1) / W->group : 0;                                       \
    const float *scales[STREAMS];                                                                                      \
    UNROLLED for (int r = 0; r < rows; r++)                                                                            \
        scales[r] = W->scales + number[r] * per_row;
#define END_OF_CHUNK (begin + CHUNK < W->columns ? begin + CHUNK : W->columns)
#define BEGIN_CHUNK                                                                                                    \
    end = END_OF_CHUNK;                                                                                                \
    for (int r = 0; r < rows; r++)                                                                                     \
        read_bits(W, number[r], begin, end, words[r]);
#define UNROLLED _Pragma("GCC unroll 8") /* sums that are numbered by a variable would not stay in registers */

/* ---- portable: visit the bits that are set ---- */

static inline void rows_portable(const matrix *W, const float *x, int64_t stride, const int tokens, const int rows,
                                 const int kind, float *y, int64_t row, int64_t apart, int64_t last) {
    uint64_t words[STREAMS][CHUNK / 64];
    BEGIN_ROWS
    for (int r = 0; r < rows; r++) {
        float sums[2][TOKENS] = {{0}}; /* in turn, since an addition takes longer than the rest */
        int64_t next = at[r];
        for (int64_t begin = 0, end; begin < W->columns; begin = end) {
            end = END_OF_CHUNK;
            read_bits(W, number[r], begin, end, words[r]);
            for (int64_t column = begin; column < end; column += 64) {
                const float *from = x + column;
                for (uint64_t bits = words[r][(column - begin) / 64]; bits;)
                    UNROLLED for (int i = 0; i < 2 && bits; i++, bits &= bits - 1) {
                        int64_t one = __builtin_ctzll(bits);
                        float weight = value_of(W, next++, kind);
                        if (scaled)
                            weight *= scales[r][W->groups[(column + one) / 8]];
                        UNROLLED for (int t = 0; t < tokens; t++)
                            sums[i][t] += weight * from[t * stride + one];
                    }
            }
        }
        for (int t = 0; t < tokens; t++)
            y[t * W->rows + number[r]] = sums[0][t] + sums[1][t];
    }
}

#ifdef X86

/* ---- AVX2: eight columns at a time, by the table of places ---- */

#define ISA2 __attribute__((target("avx2,fma,popcnt"), always_inline)) static inline

/* The next eight values as floats; fewer than eight may be left in the array, which ends at `end`, if that is near. */
ISA2 __m256 next8(const matrix *W, int64_t at, int64_t end, int near, const int kind) {
    if (near) {
        float few[8] = {0};
        for (int64_t i = at; i < end && i < at + 8; i++)
            few[i - at] = value_of(W, i, kind);
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
    uint64_t halves;
    memcpy(&halves, (const uint8_t *)W->values + (uint64_t)at / 2, 8);
    __m256i all = _mm256_set1_epi32((int)(halves >> 4 * (at & 1))); /* each of eight shifts its own four bits to the top */
    all = _mm256_sllv_epi32(all, _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(all, 28));
}

ISA2 float sum8(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

ISA2 void rows_avx2(const matrix *W, const float *x, int64_t stride, const int tokens, const int rows, const int kind,
                    float *y, int64_t row, int64_t apart, int64_t last) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const int64_t stored = W->starts[W->rows];
    uint64_t words[STREAMS][CHUNK / 64];
    __m256 sums[STREAMS][TOKENS], weights;
    BEGIN_ROWS
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int t = 0; t < tokens; t++)
            sums[r][t] = _mm256_setzero_ps();
    for (int64_t begin = 0, end; begin < W->columns; begin = end) {
        BEGIN_CHUNK
        for (int64_t column = begin; column < end; column += 64)
            UNROLLED for (int r = 0; r < rows; r++) {
                ask_ahead(W, at[r], kind);
                const float *from = x + column;
                const int near = stored - at[r] < 80; /* 56 values, and the 16 int4 whose bytes are read for the last eight */
                uint64_t bits = words[r][(column - begin) / 64];
                const int whole = bits == ~0ull;
                UNROLLED for (int i = 0; i < 8; i++, bits >>= 8, from += 8) {
                    weights = next8(W, at[r], stored, near, kind);
                    if (!whole) {
                        const __m256i next = _mm256_loadu_si256((const __m256i *)places[bits & 255]);
                        const __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)(bits & 255)), bit);
                        weights = _mm256_permutevar8x32_ps(weights, next);
                        weights = _mm256_and_ps(weights, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
                    }
                    if (scaled)
                        weights = _mm256_mul_ps(weights, _mm256_set1_ps(scales[r][W->groups[column / 8 + i]]));
                    UNROLLED for (int t = 0; t < tokens; t++)
                        sums[r][t] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(from + t * stride), sums[r][t]);
                    at[r] += __builtin_popcountll(bits & 255);
                }
            }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int t = 0; t < tokens; t++)
            y[t * W->rows + number[r]] = sum8(sums[r][t]);
}

/* ---- AVX-512: by the instruction that expands while it loads ---- */

#define TARGET512 "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,popcnt,bmi,bmi2"
#define ISA512 __attribute__((target(TARGET512), always_inline)) static inline

/* The weights of 64 columns. Those of bfloat16 come as the even and the odd ones of 32, since two share a register: the
   upper half is a float32 already, the lower is after a shift. */
ISA512 void expand64(const matrix *W, int64_t at, uint64_t bits, const int kind, __m512 weights[4]) {
    if (kind == BFLOAT16) {
        UNROLLED for (int half = 0; half < 2; half++) {
            uint32_t mask = (uint32_t)(bits >> 32 * half);
            __m512i two = bits == ~0ull ? _mm512_loadu_si512((const uint16_t *)W->values + at)
                                        : _mm512_maskz_expandloadu_epi16(mask, (const uint16_t *)W->values + at);
            weights[2 * half] = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
            weights[2 * half + 1] = _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32(-65536)));
            at += __builtin_popcount(mask);
        }
    } else
        UNROLLED for (int i = 0; i < 4; i++) {
            __mmask16 mask = (__mmask16)(bits >> 16 * i);
            weights[i] = bits == ~0ull ? _mm512_loadu_ps((const float *)W->values + at)
                                       : _mm512_maskz_expandloadu_ps(mask, (const float *)W->values + at);
            at += __builtin_popcount(mask);
        }
}

/* The inputs of 64 columns, in the order of those weights. */
ISA512 void inputs64(const float *x, const int kind, __m512 inputs[4]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    UNROLLED for (int i = 0; i < 4; i++)
        inputs[i] = _mm512_loadu_ps(x + 16 * i);
    if (kind == BFLOAT16)
        UNROLLED for (int i = 0; i < 4; i += 2) {
            __m512 low = inputs[i], high = inputs[i + 1];
            inputs[i] = _mm512_permutex2var_ps(low, even, high);
            inputs[i + 1] = _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
        }
}

#define BEGIN_SUMS                                                                                                     \
    __m512 sums[STREAMS][TOKENS];                                                                                      \
    UNROLLED for (int r = 0; r < rows; r++)                                                                            \
        UNROLLED for (int t = 0; t < tokens; t++)                                                                      \
            sums[r][t] = _mm512_setzero_ps();
#define WRITE_SUMS                                                                                                     \
    UNROLLED for (int r = 0; r < rows; r++)                                                                            \
        UNROLLED for (int t = 0; t < tokens; t++)                                                                      \
            y[t * W->rows + number[r]] = _mm512_reduce_add_ps(sums[r][t]);

ISA512 void rows_avx512(const matrix *W, const float *x, int64_t stride, const int tokens, const int rows, const int kind,
                        float *y, int64_t row, int64_t apart, int64_t last) {
    uint64_t words[STREAMS][CHUNK / 64];
    __m512 weights[STREAMS][4], inputs[4];
    BEGIN_NUMBERS
    BEGIN_SUMS
    for (int64_t begin = 0, end; begin < W->columns; begin = end) {
        BEGIN_CHUNK
        for (int64_t column = begin; column < end; column += 64) {
            UNROLLED for (int r = 0; r < rows; r++) {
                uint64_t bits = words[r][(column - begin) / 64];
                ask_ahead(W, at[r], kind);
                expand64(W, at[r], bits, kind, weights[r]);
                at[r] += __builtin_popcountll(bits);
            }
            UNROLLED for (int t = 0; t < tokens; t++) {
                inputs64(x + t * stride + column, kind, inputs);
                UNROLLED for (int r = 0; r < rows; r++)
                    UNROLLED for (int i = 0; i < 4; i++)
                        sums[r][t] = _mm512_fmadd_ps(weights[r][i], inputs[i], sums[r][t]);
            }
        }
    }
    WRITE_SUMS
}

/* ---- AVX-512, integers: 32 products of 16 bits in one instruction, which adds them in pairs ---- */

/* The integers of 64 columns, 16 bits each: the even columns and the odd ones. */
ISA512 void whole64(const matrix *W, int64_t at, uint64_t bits, const int kind, __m512i weights[2]) {
    const uint64_t odd = (uint64_t)at & 1;
    __m512i even, all; /* an even column's integer is at the top of 16 bits in the one, an odd column's in the other */
    if (kind == INT8) {
        const int8_t *from = (const int8_t *)W->values + at;
        all = bits == ~0ull ? _mm512_loadu_si512(from) : _mm512_maskz_expandloadu_epi8(bits, from);
        even = _mm512_slli_epi16(all, 8);
    } else if (bits == ~0ull && !odd) { /* a byte has an even column's in its lower half and the next one's in its upper */
        all = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)((const uint8_t *)W->values + (uint64_t)at / 2)));
        even = _mm512_slli_epi16(all, 12), all = _mm512_slli_epi16(all, 8);
    } else {
        /* One instruction cuts eight times eight bits out of 64, wherever they begin: here four bits before the number,
           so that it lies above. Those begin at -4 (60: the 64 are a ring), 0, ..., 24, and 4 later if at is odd. */
        uint64_t bytes = (odd + (uint64_t)__builtin_popcountll(bits) + 1) / 2;
        all = _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, (unsigned)bytes), (const uint8_t *)W->values + (uint64_t)at / 2);
        __m512i begins = _mm512_set1_epi64((int64_t)(0x1814100c0804003cull + odd * 0x0404040404040404ull));
        all = _mm512_multishift_epi64_epi8(begins, _mm512_permutexvar_epi8(_mm512_loadu_si512(overlaps), all));
        all = _mm512_maskz_expand_epi8(bits, all);
        even = _mm512_slli_epi16(all, 8);
    }
    weights[0] = _mm512_srai_epi16(even, kind == INT4 ? 12 : 8);
    weights[1] = _mm512_srai_epi16(all, kind == INT4 ? 12 : 8);
}

/* The scales of 64 columns for sums of four columns each. */
ISA512 __m512 scales64(const float *scales, const int32_t groups[8], int one) {
    if (one)
        return _mm512_set1_ps(scales[groups[0]]);
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    __m256 eight = _mm256_i32gather_ps(scales, _mm256_loadu_si256((const __m256i *)groups), 4);
    return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(eight));
}

/* What `whole_inputs` makes of the inputs takes their place, and their unit comes behind them. */
ISA512 void rows_whole(const matrix *W, const float *x, int64_t stride, const int tokens, const int rows, const int kind,
                       float *y, int64_t row, int64_t apart, int64_t last) {
    const __m512 upper = _mm512_set1_ps(1 << 16);
    const float *units = x + stride - BESIDE;
    const int one = W->group % 64 == 0; /* 64 columns have one scale */
    uint64_t words[STREAMS][CHUNK / 64];
    __m512i weights[STREAMS][2], high[STREAMS][TOKENS], low[STREAMS][TOKENS], inputs[4];
    BEGIN_ROWS
    BEGIN_SUMS
    for (int64_t begin = 0, end; begin < W->columns; begin = end) {
        BEGIN_CHUNK
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int t = 0; t < tokens; t++)
                high[r][t] = low[r][t] = _mm512_setzero_si512();
        for (int64_t column = begin; column < end; column += 64) {
            const int32_t *group = W->groups + (uint64_t)column / 8;
            UNROLLED for (int r = 0; r < rows; r++) {
                uint64_t bits = words[r][(uint64_t)(column - begin) / 64];
                ask_ahead(W, at[r], kind);
                whole64(W, at[r], bits, kind, weights[r]);
                at[r] += __builtin_popcountll(bits);
            }
            UNROLLED for (int t = 0; t < tokens; t++) {
                UNROLLED for (int i = 0; i < 4; i++)
                    inputs[i] = _mm512_loadu_si512(x + t * stride + column + 16 * i);
                UNROLLED for (int r = 0; r < rows; r++)
                    UNROLLED for (int i = 0; i < 2; i++) {
                        high[r][t] = _mm512_dpwssd_epi32(high[r][t], weights[r][i], inputs[i]);
                        low[r][t] = _mm512_dpwssd_epi32(low[r][t], weights[r][i], inputs[2 + i]);
                    }
            }
            if (column + 64 < end && (!scaled || (one && group[0] == group[8])))
                continue; /* whole numbers of 32 bits hold the sums of a chunk */
            UNROLLED for (int r = 0; r < rows; r++) {
                const __m512 scale = scaled ? scales64(scales[r], group, one) : _mm512_set1_ps(1);
                UNROLLED for (int t = 0; t < tokens; t++) {
                    __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[r][t]), upper, _mm512_cvtepi32_ps(low[r][t]));
                    sums[r][t] = _mm512_fmadd_ps(sum, scale, sums[r][t]);
                    high[r][t] = low[r][t] = _mm512_setzero_si512();
                }
            }
        }
    }
    UNROLLED for (int t = 0; t < tokens; t++) {
        UNROLLED for (int r = 0; r < rows; r++)
            sums[r][t] = _mm512_mul_ps(sums[r][t], _mm512_set1_ps(units[t * stride]));
    }
    WRITE_SUMS
}

/* The inputs of a token as whole numbers below 2^30 times a unit, a power of two. Rounding changes them by 2^-30 of the
   largest at most, and those above its 64th part not at all. Each in two parts of 16 bits; of 64 columns even ones apart
   from odd ones. */
__attribute__((target(TARGET512))) static void whole_inputs(const float *x, int64_t stride, float *room) {
    uint32_t most = 30u << 23; /* inputs below 2^-96 would need a unit that float32 has not */
    for (int64_t i = 0; i < stride; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        most = (bits & 0x7fffffff) > most ? bits & 0x7fffffff : most;
    }
    const uint32_t exponent = most >> 23; /* all are below 2^(exponent - 126) */
    const uint32_t powers[2] = {(283 - exponent) << 23, exponent == 255 ? 0x7fc00000 : (exponent - 29) << 23};
    float up;
    memcpy(&up, powers, 4);
    memcpy(room + stride, powers + 1, 4); /* not a number if an input is not, or is infinite */
    for (int64_t block = 0; block < stride; block += 64)
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < 32; i++) {
                int32_t number = exponent == 255 ? 0 : (int32_t)__builtin_rintf(x[block + 2 * i + side] * up);
                int32_t high = (number + (1 << 15)) >> 16;
                int16_t *to = (int16_t *)(room + block) + 32 * side + i;
                to[0] = (int16_t)high;
                to[64] = (int16_t)(number - high * (1 << 16));
            }
}

ISA512 __m512 next16(const matrix *W, int64_t at, __mmask16 there, const int kind) {
    if (kind == FLOAT32)
        return _mm512_maskz_loadu_ps(there, (const float *)W->values + at);
    __m256i narrow = _mm256_maskz_loadu_epi16(there, (const uint16_t *)W->values + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

/* 2:4 can do it the other way round: 16 values are those of 32 columns, always, so their inputs come to them. One
   instruction picks 16 of 32 numbers, and the codes say which. */
ISA512 void rows_two_of_four(const matrix *W, const float *x, int64_t stride, const int tokens, const int rows,
                             const int kind, float *y, int64_t row, int64_t apart, int64_t last) {
    const __m512i group = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    const __m512i place = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 weights[STREAMS];
    __m512i picked[STREAMS];
    BEGIN_NUMBERS
    BEGIN_SUMS
    for (int64_t column = 0; column < W->columns; column += 32) {
        int64_t left = W->columns - column < 32 ? W->columns - column : 32;
        __mmask16 there = (__mmask16)((1u << left / 2) - 1);
        UNROLLED for (int r = 0; r < rows; r++) {
            uint32_t codes = 0;
            const uint8_t *from = W->bits + number[r] * W->row_bytes + column / 8;
            if (left == 32)
                memcpy(&codes, from, 4);
            else
                memcpy(&codes, from, (size_t)left / 8);
            __m512i code = _mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32((int)codes), place), _mm512_set1_epi32(3));
            picked[r] = _mm512_or_si512(code, group);
            ask_ahead(W, at[r], kind);
            weights[r] = next16(W, at[r], there, kind);
            at[r] += left / 2;
        }
        UNROLLED for (int t = 0; t < tokens; t++) {
            const float *from = x + t * stride + column;
            __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
            UNROLLED for (int r = 0; r < rows; r++)
                sums[r][t] = _mm512_fmadd_ps(weights[r], _mm512_permutex2var_ps(low, picked[r], high), sums[r][t]);
        }
    }
    WRITE_SUMS
}
#endif

/* Rows first..last in as many streams as registers allow: each reads neighbouring rows, so that its memory is one piece
   and asking ahead finds the row that comes next. */
#define WALK(name, tokens, kind, rows)                                                                                 \
    {                                                                                                                  \
        int64_t apart = (last - first + (rows)-1) / (rows);                                                            \
        for (int64_t row = first; row < first + apart; row++)                                                          \
            name(W, x, stride, tokens, rows, kind, y, row, apart, last);                                               \
        return;                                                                                                        \
    }
/* One function for each kind and number of tokens, so that the compiler keeps the sums in registers. */
#define FOR_KIND(name, kind, two, four, eight)                                                                         \
    switch (tokens) {                                                                                                  \
    case 1: WALK(name, 1, kind, STREAMS)                                                                               \
    case 2: WALK(name, 2, kind, two)                                                                                   \
    case 4: WALK(name, 4, kind, four)                                                                                  \
    default: WALK(name, 8, kind, eight)                                                                                \
    }
#define BLOCK(function, floats, two, four, eight, integers, pair, quartet, octet)                                      \
    static void function(const matrix *W, const float *x, int64_t stride, int tokens, float *y, int64_t first, int64_t last) { \
        switch (W->kind) {                                                                                             \
        case FLOAT32: FOR_KIND(floats, FLOAT32, two, four, eight)                                                      \
        case BFLOAT16: FOR_KIND(floats, BFLOAT16, two, four, eight)                                                    \
        case INT8: FOR_KIND(integers, INT8, pair, quartet, octet)                                                          \
        default: FOR_KIND(integers, INT4, pair, quartet, octet)                                                            \
        }                                                                                                              \
    }

BLOCK(block_portable, rows_portable, 1, 1, 1, rows_portable, 1, 1, 1)
#ifdef X86
__attribute__((target("avx2,fma,popcnt"))) BLOCK(block_avx2, rows_avx2, 4, 2, 1, rows_avx2, 4, 2, 1)
__attribute__((target(TARGET512))) BLOCK(block_avx512, rows_avx512, 4, 2, 2, rows_whole, 2, 2, 1)
__attribute__((target(TARGET512))) BLOCK(block_two_of_four, rows_two_of_four, 4, 4, 2, rows_whole, 2, 2, 1)
#endif

static void block(const matrix *W, int level, const float *x, int64_t stride, int tokens, float *y, int64_t first, int64_t last) {
#ifdef X86
    if (level == AVX512 && W->codes)
        block_two_of_four(W, x, stride, tokens, y, first, last);
    else if (level == AVX512)
        block_avx512(W, x, stride, tokens, y, first, last);
    else if (level == AVX2)
        block_avx2(W, x, stride, tokens, y, first, last);
    else
#endif
        block_portable(W, x, stride, tokens, y, first, last);
}

/* y (tokens, rows) = x W^T; x (tokens, stride), whose columns behind those of W are zeros, up to a multiple of 64, which
   stride is. room (tokens, stride + BESIDE): integers at AVX-512 need it for the inputs; else NULL will do. */
void minprune_product(const matrix *W, int level, const float *x, int64_t stride, int64_t tokens, float *y, float *room,
                      int threads) {
#ifdef X86
    if (level == AVX512 && W->kind >= INT8) {
        for (int64_t token = 0; token < tokens; token++)
            whole_inputs(x + token * stride, stride, room + token * (stride + BESIDE));
        x = room, stride += BESIDE;
    }
#endif
    /* four pieces of rows for each thread, so that one which is held up leaves its share to the others; with more
       tokens than fit in registers, pieces that stay in the cache until all tokens have met them */
    int64_t size = tokens > TOKENS ? 32 : threads > 1 ? (W->rows + 4 * threads - 1) / (4 * threads) : W->rows;
    int64_t pieces = size ? (W->rows + size - 1) / size : 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t first = piece * size, last = first + size < W->rows ? first + size : W->rows;
        for (int64_t token = 0; token < tokens;) {
            int64_t left = tokens - token;
            int now = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            block(W, level, x + token * stride, stride, now, y + token * W->rows, first, last);
            token += now;
        }
    }
}

/* The dense matrix: y (rows, columns). */
void minprune_dense(const matrix *W, float *y, int threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < W->rows; row++) {
        uint64_t words[CHUNK / 64];
        float *to = y + row * W->columns;
        int64_t at = W->starts[row];
        const float *scales = W->scales ? W->scales + row * ((W->columns + W->group - 1) / W->group) : NULL;
        memset(to, 0, (size_t)W->columns * sizeof(float));
        for (int64_t begin = 0, end; begin < W->columns; begin = end) {
            end = END_OF_CHUNK;
            read_bits(W, row, begin, end, words);
            for (int64_t column = begin; column < end; column += 64)
                for (uint64_t bits = words[(column - begin) / 64]; bits; bits &= bits - 1) {
                    int64_t one = column + __builtin_ctzll(bits);
                    to[one] = value_of(W, at++, W->kind) * (scales ? scales[W->groups[one / 8]] : 1.0f);
                }
        }
    }
}

/* Reads n numbers, up to the last few, and nothing else, four streams a thread as above: the bandwidth that a product can
   at best reach. */
uint64_t minprune_read(const uint64_t *numbers, int64_t n, int threads) {
    uint64_t total = 0;
    const int64_t step = 32, part = n / (4 * step * threads) * step; /* numbers, of four lines */
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total) if (threads > 1)
    for (int64_t piece = 0; piece < threads; piece++) {
        uint64_t sums[8] = {0};
        for (int64_t i = 0; i < part; i += step)
            for (int64_t stream = 4 * piece; stream < 4 * piece + 4; stream++) {
                const uint64_t *from = numbers + stream * part + i;
                for (int64_t k = 0; k < step; k += 8) {
                    ask((uintptr_t)(from + k) + AHEAD);
                    for (int lane = 0; lane < 8; lane++)
                        sums[lane] += from[k + lane];
                }
            }
        for (int lane = 0; lane < 8; lane++)
            total += sums[lane];
    }
    return total;
}
