/* Small bfloat16 matrices inside a core's cache: products, conversions and exponentials (AVX512-BF16).

   A "pair" is two bfloat16 numbers that one instruction multiplies and adds: 32 bits, the first in the low half. Widths
   are multiples of 16, so that no row ends within a vector. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define VECTOR 16 /* floats, or pairs, in a register */

INLINE __m512 wide(const char *at) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at)), 16));
}

INLINE void narrow(char *at, __m512 x) { _mm256_storeu_si256((void *)at, (__m256i)_mm512_cvtneps_pbh(x)); }

/* Two rows' floats as bfloat16: the first row's 16, then the second's. */
INLINE __m512i both(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

/* What both gave, as 16 pairs: one number of either row in each. */
INLINE __m512i paired(__m512i x) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, x);
}

/* 2^x to 3e-6 of itself, for x up to 127; 2^-126 below -126. NaN stays NaN. A minimax polynomial of degree 4. */
INLINE __m512 exp2_of(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x); /* in this order: of a NaN and a number, max takes the second */
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(9.570101276040077e-3f);
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.591785907745361e-2f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.40247443318367e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.931217908859253e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.999992847442627e-1f));
  return _mm512_scalef_ps(y, whole);
}

/* Which of the 16 columns from ``from`` on are among the first ``count``. */
INLINE __mmask16 within(int64_t from, int64_t count) {
  return count - from >= VECTOR ? 0xffff : (__mmask16)((1u << (count - from)) - 1);
}

/* The 16 bfloat16 numbers (8 pairs) of row j, then those of row j + 8; zero where there is no such row. */
INLINE __m512i two_of(const char *rows, int64_t stride, int64_t j, int64_t count) {
  __m256i first = _mm256_setzero_si256(), second = first;
  if (j < count) first = _mm256_loadu_si256((const void *)(rows + j * stride));
  if (j + 8 < count) second = _mm256_loadu_si256((const void *)(rows + (j + 8) * stride));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

/* 16 rows of 8 pairs to 8 rows of 16: to[p][j] = the p-th pair of row j. */
INLINE void transpose_block(const char *rows, int64_t stride, int64_t count, uint32_t *to, int64_t columns) {
  const __m512i even = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), odd = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
  __m512i half[8];
  for (int j = 0; j < 8; j += 4) {
    __m512i a = two_of(rows, stride, j, count), b = two_of(rows, stride, j + 1, count);
    __m512i c = two_of(rows, stride, j + 2, count), d = two_of(rows, stride, j + 3, count);
    __m512i low = _mm512_unpacklo_epi32(a, b), low2 = _mm512_unpacklo_epi32(c, d);
    __m512i high = _mm512_unpackhi_epi32(a, b), high2 = _mm512_unpackhi_epi32(c, d);
    half[j] = _mm512_unpacklo_epi64(low, low2), half[j + 1] = _mm512_unpackhi_epi64(low, low2);
    half[j + 2] = _mm512_unpacklo_epi64(high, high2), half[j + 3] = _mm512_unpackhi_epi64(high, high2);
  }
  for (int p = 0; p < 4; p++) {
    _mm512_storeu_si512(to + p * columns, _mm512_permutex2var_epi64(half[p], even, half[p + 4]));
    _mm512_storeu_si512(to + (p + 4) * columns, _mm512_permutex2var_epi64(half[p], odd, half[p + 4]));
  }
}

/* to[p][j] = the p-th pair of row j: what is multiplied along the rows. Columns from ``count`` on are zero. */
static void transpose(const char *rows, int64_t stride, int64_t count, int64_t width, uint32_t *to, int64_t columns) {
  for (int64_t j = 0; j < columns; j += VECTOR)
    for (int64_t p = 0; p < width / 2; p += 8)
      transpose_block(rows + j * stride + 4 * p, stride, count - j, to + p * columns + j, columns);
}

/* to[r][c] = (row 2r, row 2r + 1) at column c: what is multiplied down the rows. A row that is not there is zero. */
INLINE void interleave(const char *rows, int64_t stride, int64_t count, int64_t width, uint32_t *to) {
  for (int64_t r = 0; 2 * r < count; r++)
    for (int64_t c = 0; c < width; c += VECTOR) {
      const char *at = rows + 2 * r * stride + 2 * c;
      __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at)), high = _mm512_setzero_si512();
      if (2 * r + 1 < count) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(at + stride)));
      _mm512_storeu_si512(to + r * width + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* The left factor of a product: where its first pair is, and the bytes from a row, or a pair, to the next. */
typedef struct {
  const char *at;
  int64_t row, pair;
} Left;

/* c (rows x 16 vectors) = or += a times b, its sums held in registers all along. */
INLINE void tile(const int rows, const int vectors, Left a, const uint32_t *b, int64_t pairs, float *c, int64_t width,
                 const int add) {
  __m512 sums[8][2];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++)
      sums[i][j] = add ? _mm512_loadu_ps(c + i * width + VECTOR * j) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; p++) {
    __m512bh right[2];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + p * width + VECTOR * j);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      uint32_t pair;
      memcpy(&pair, a.at + i * a.row + p * a.pair, 4);
      __m512bh left = (__m512bh)_mm512_set1_epi32((int)pair);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) _mm512_storeu_ps(c + i * width + VECTOR * j, sums[i][j]);
}

INLINE void down_the_rows(int64_t rows, const int vectors, Left a, const uint32_t *b, int64_t pairs, float *c,
                          int64_t width, const int add) {
#define ROWS(n)                                            \
  {                                                        \
    tile(n, vectors, a, b, pairs, c, width, add);          \
    rows -= n, a.at += n * a.row, c += n * width;          \
  }
  while (rows >= 8) ROWS(8)
  if (rows >= 4) ROWS(4)
  if (rows >= 2) ROWS(2)
  if (rows >= 1) ROWS(1)
#undef ROWS
}

/* c (rows x width, float) = a times b; with ``add``, += . b holds ``pairs`` rows of ``width`` pairs. */
INLINE void either_product(int64_t rows, int64_t width, int64_t pairs, Left a, const uint32_t *b, float *c,
                           const int add) {
  int64_t n = 0;
  for (; n + 2 * VECTOR <= width; n += 2 * VECTOR) down_the_rows(rows, 2, a, b + n, pairs, c + n, width, add);
  if (n < width) down_the_rows(rows, 1, a, b + n, pairs, c + n, width, add);
}

static void product(int64_t rows, int64_t width, int64_t pairs, Left a, const uint32_t *b, float *c) {
  either_product(rows, width, pairs, a, b, c, 0);
}

static void product_added(int64_t rows, int64_t width, int64_t pairs, Left a, const uint32_t *b, float *c) {
  either_product(rows, width, pairs, a, b, c, 1);
}
