/* Products of random matrices with random masks by every version, in arrays without a byte to spare, against a plain
   loop in double. Built together with expand.c by test_sanitizers.py, under the address and undefined sanitizers. */

#include "expand.c"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33) % below;
}

static float uniform(void) { return (float)draw(2000001) / 1000000 - 1; }

static double one_case(int level, int kind, int layout) {
    const int64_t rows = 1 + draw(40), tokens = 1 + draw(19), group = draw(3) ? 8 * (1 + draw(12)) : 64 * (1 + draw(4));
    const int64_t columns = layout == 2 ? 8 * (1 + draw(30)) : 1 + draw(draw(4) ? 240 : 2400);
    const int64_t row_bytes = (columns + 7) / 8, groups = (columns + group - 1) / group;
    const uint32_t share = (uint32_t[]){0, 10, 50, 90, 100}[draw(5)];
    double *dense = calloc((size_t)(rows * columns), sizeof(double)), worst = 0;
    uint8_t *bits = calloc((size_t)(rows * row_bytes), 1);
    int64_t *starts = calloc((size_t)rows + 1, 8), stored = 0;
    float *scales = kind >= INT8 && draw(2) ? malloc((size_t)(rows * groups) * 4) : NULL, *all = malloc((size_t)(rows * (columns + 1)) * 4);
    for (int64_t i = 0; scales && i < rows * groups; i++)
        scales[i] = uniform();
    for (int64_t row = 0; row < rows; row++) {
        starts[row] = stored;
        for (int64_t column = 0; column < columns; column++) {
            static int first, second;
            if (layout == 2 && column % 4 == 0) {
                first = (int)draw(3), second = first + 1 + (int)draw((uint32_t)(3 - first));
                bits[row * row_bytes + column / 8] |= (uint8_t)((first | second << 2) << column % 8);
            }
            int keep = layout == 0 ? 1 : layout == 1 ? draw(100) >= share : column % 4 == first || column % 4 == second;
            if (!keep)
                continue;
            float value = kind < INT8 ? uniform() : kind == INT8 ? (float)draw(256) - 128 : (float)draw(16) - 8;
            if (kind == BFLOAT16) {
                uint32_t wide;
                memcpy(&wide, &value, 4);
                wide &= 0xffff0000u;
                memcpy(&value, &wide, 4);
            }
            if (layout == 1)
                bits[row * row_bytes + column / 8] |= (uint8_t)(1 << column % 8);
            all[stored++] = value;
            dense[row * columns + column] = value * (scales ? (double)scales[row * groups + column / group] : 1);
        }
        if (kind == INT4 && stored % 2)
            all[stored++] = 0;
    }
    starts[rows] = stored;
    const size_t size = kind == INT4 ? (size_t)stored / 2 : (size_t)stored * (kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1);
    uint8_t *values = calloc(size + !size, 1);
    for (int64_t i = 0; i < stored; i++)
        if (kind == FLOAT32)
            memcpy(values + 4 * i, &all[i], 4);
        else if (kind == BFLOAT16)
            memcpy(values + 2 * i, (char *)&all[i] + 2, 2);
        else if (kind == INT8)
            ((int8_t *)values)[i] = (int8_t)all[i];
        else
            values[i / 2] |= (uint8_t)(((int)all[i] & 15) << 4 * (i & 1));
    const int64_t eights = (columns + 63) / 64 * 8, stride = 8 * eights;
    int32_t *which = malloc((size_t)eights * 4); /* in an array of exactly that size, like the others */
    for (int64_t i = 0; i < eights; i++)
        which[i] = (int32_t)(scales ? (8 * i < columns ? 8 * i : columns - 1) / group : 0);
    float *x = calloc((size_t)(tokens * stride), 4), *y = malloc((size_t)(tokens * rows) * 4), *back = malloc((size_t)(rows * columns) * 4);
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t column = 0; column < columns; column++)
            x[i * stride + column] = uniform();
    float *room = malloc((size_t)(tokens * (stride + BESIDE)) * 4);
    matrix W = {values, layout ? bits : NULL, starts, scales, which, rows, columns, row_bytes, scales ? group : 0, kind, layout == 2};
    minprune_product(&W, level, x, stride, tokens, y, room, 1);
    minprune_dense(&W, back, 1);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t token = 0; token < tokens; token++) {
            double sum = 0, size_of = 1e-9, rounding = 0; /* of inputs below 1, to whole numbers of 2^-30 */
            for (int64_t column = 0; column < columns; column++) {
                double term = dense[row * columns + column] * x[token * stride + column];
                sum += term, size_of += fabs(term), rounding += ldexp(fabs(dense[row * columns + column]), -30);
            }
            worst = fmax(worst, (fabs(sum - y[token * rows + row]) - (kind >= INT8 ? rounding : 0)) / size_of);
        }
        for (int64_t column = 0; column < columns; column++)
            worst = fmax(worst, fabs(dense[row * columns + column] - back[row * columns + column]) / 256);
    }
    free(dense), free(bits), free(starts), free(scales), free(all), free(values), free(which), free(x), free(y), free(back), free(room);
    return worst;
}

int main(int count, char **words) {
    state = count > 1 ? strtoull(words[1], NULL, 10) : 0;
    const int cases = count > 2 ? atoi(words[2]) : 100;
    minprune_init();
    for (int level = PORTABLE; level <= minprune_best_level(); level++)
        for (int kind = FLOAT32; kind <= INT4; kind++)
            for (int layout = 0; layout < 3; layout++)
                for (int i = 0; i < cases; i++) {
                    double worst = one_case(level, kind, layout);
                    if (!(worst < 1e-5)) {
                        printf("level %d, kind %d, layout %d, case %d: off by %g\n", level, kind, layout, i, worst);
                        return 1;
                    }
                }
    return 0;
}
