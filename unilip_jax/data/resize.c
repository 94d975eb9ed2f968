/* Resizes 8-bit RGB images as PIL does, bit for bit: bicubic with antialias, rows first, then columns.

   PIL's arithmetic (libImaging/Resample.c) is kept: the filter's weights in doubles, then integers of 22
   fractional bits, and a rounding to 8 bits after each pass. Only the order of the loops differs, so that
   compilers use vector instructions: both passes add weighted lines of bytes. For the first one, blocks of
   rows are transposed before and after. resize.py compiles it. For x86-64, where PIL's own compiler does not
   join the multiplications and additions of the weights. */

#include <emmintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORIZED
#endif
#define INLINED static inline __attribute__((always_inline))

enum { BITS = 22, BLOCK = 64, TILE = 16 };

typedef struct {
  int first, count;  /* source positions that an output depends on */
  int32_t *weights;
} Taps;

static double bicubic(double x) {
  x = fabs(x);
  if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0.0;
}

/* Returns how outputs begin ... begin + count - 1 of `resized` depend on a line of `size` positions; NULL
   without memory. */
static Taps *make_taps(int size, int resized, int begin, int count) {
  double scale = (double)size / resized, stretch = scale < 1.0 ? 1.0 : scale;
  double support = 2.0 * stretch, inverse = 1.0 / stretch;
  int longest = (int)ceil(support) * 2 + 1;
  Taps *taps = malloc(count * (sizeof(Taps) + longest * sizeof(int32_t)) + longest * sizeof(double));
  if (!taps) return NULL;
  double *values = (double *)(taps + count);  /* of one output */
  int32_t *weights = (int32_t *)(values + longest);
  for (int i = 0; i < count; i++, weights += longest) {
    double center = (begin + i + 0.5) * scale, total = 0.0;
    int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
    if (first < 0) first = 0;
    if (last > size) last = size;
    taps[i] = (Taps){first, last - first, weights};
    for (int k = 0; k < last - first; k++) {
      values[k] = bicubic((k + first - center + 0.5) * inverse);
      total += values[k];
    }
    for (int k = 0; k < last - first; k++) {
      double weight = (total != 0.0 ? values[k] / total : values[k]) * (1 << BITS);
      weights[k] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }
  return taps;
}

INLINED uint8_t rounded(int32_t sum) {
  sum >>= BITS;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

/* Writes the weighted sum of lines of `width` bytes that are `stride` apart. */
INLINED void add_lines(
    const uint8_t *lines, int64_t stride, int width, const Taps *taps, uint8_t *out) {
  lines += taps->first * stride;
  int begin = 0;
  for (; begin + BLOCK <= width; begin += BLOCK) {
    int32_t sums[BLOCK];
    for (int i = 0; i < BLOCK; i++) sums[i] = 1 << (BITS - 1);
    for (int k = 0; k < taps->count; k++)
      for (int i = 0; i < BLOCK; i++) sums[i] += taps->weights[k] * lines[k * stride + begin + i];
    for (int i = 0; i < BLOCK; i++) out[begin + i] = rounded(sums[i]);
  }
  for (int i = begin; i < width; i++) {
    int32_t sum = 1 << (BITS - 1);
    for (int k = 0; k < taps->count; k++) sum += taps->weights[k] * lines[k * stride + i];
    out[i] = rounded(sum);
  }
}

/* Transposes 16×16 bytes. */
INLINED void transpose_tile(const uint8_t *in, int64_t in_stride, uint8_t *out, int64_t out_stride) {
  __m128i a[TILE], b[TILE];
  for (int i = 0; i < TILE; i++) a[i] = _mm_loadu_si128((const __m128i *)(in + i * in_stride));
  for (int turn = 0; turn < 4; turn++) {  /* each turn deals the lines like a deck of cards */
    for (int i = 0; i < TILE / 2; i++) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + TILE / 2]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + TILE / 2]);
    }
    for (int i = 0; i < TILE; i++) a[i] = b[i];
  }
  for (int i = 0; i < TILE; i++) _mm_storeu_si128((__m128i *)(out + i * out_stride), a[i]);
}

/* Transposes [height, width] bytes. */
INLINED void transpose(
    const uint8_t *in, int64_t in_stride, int height, int width, uint8_t *out, int64_t out_stride) {
  int x = 0, y = 0;
  for (y = 0; y + TILE <= height; y += TILE)
    for (x = 0; x + TILE <= width; x += TILE)
      transpose_tile(in + y * in_stride + x, in_stride, out + x * out_stride + y, out_stride);
  for (int i = 0; i < height; i++)
    for (int j = i < y ? x : 0; j < width; j++) out[j * out_stride + i] = in[i * in_stride + j];
}

/* Resizes each row of [height, ., 3] to [height, count, 3], mirrored or not. The scratch memory holds BLOCK
   bytes for each byte of a row that is used and of a row of the result. */
VECTORIZED void resize_rows(
    const uint8_t *in, int64_t stride, int height, const Taps *taps, int count, int mirror, uint8_t *out,
    uint8_t *scratch) {
  int first = taps[0].first, used = taps[count - 1].first + taps[count - 1].count - first;
  uint8_t *results = scratch + (int64_t)3 * used * BLOCK;
  for (int y = 0; y < height; y += BLOCK) {
    int rows = height - y < BLOCK ? height - y : BLOCK;
    transpose(in + y * stride + 3 * first, stride, rows, 3 * used, scratch, BLOCK);
    for (int i = 0; i < count; i++)
      add_lines(scratch - (int64_t)3 * first * BLOCK, 3 * BLOCK, 3 * BLOCK, taps + i,
                results + (int64_t)3 * (mirror ? count - 1 - i : i) * BLOCK);
    transpose(results, BLOCK, 3 * count, rows, out + (int64_t)3 * y * count, 3 * count);
  }
}

VECTORIZED void resize_columns(
    const uint8_t *in, int64_t stride, const Taps *taps, int count, uint8_t *out) {
  for (int i = 0; i < count; i++) add_lines(in, stride, stride, taps + i, out + i * stride);
}

/* Writes the part [cut_height, cut_width, 3] at (top, left) of an image [in_height, in_width, 3] that is
   resized to [height, width, 3]; mirrored left to right or not. The scratch memory holds
   3 × (64 × (in_width + cut_width) + in_height × cut_width) bytes. Returns 0, or 1 without memory. */
int resize_part(
    const uint8_t *in, int in_height, int in_width, int height, int width, int top, int left,
    int cut_height, int cut_width, int mirror, uint8_t *scratch, uint8_t *out) {
  int64_t in_stride = (int64_t)3 * in_width, stride = (int64_t)3 * cut_width;
  Taps *columns = make_taps(in_width, width, left, cut_width);
  Taps *rows = make_taps(in_height, height, top, cut_height);
  int failed = !columns || !rows;
  if (!failed) {
    uint8_t *wide = scratch + BLOCK * (in_stride + stride);
    int first = rows[0].first, used = rows[cut_height - 1].first + rows[cut_height - 1].count - first;
    resize_rows(in + in_stride * first, in_stride, used, columns, cut_width, mirror, wide, scratch);
    for (int i = 0; i < cut_height; i++) rows[i].first -= first;
    resize_columns(wide, stride, rows, cut_height, out);
  }
  free(columns), free(rows);
  return failed;
}
