/* What a block does to its tokens beside attention and products: the sum with a branch, its layer norm, and GELU.

   A training step is short of memory traffic here, not of arithmetic: each number is read and written once.
   diffvit.kernels.native fills in the jobs. */
#include "threads.h"
#include "bfloat16.h"

#define CHUNK 256 /* rows that a thread takes; a chunk's share of the weights' gradients is summed by itself */
#define NUMBERS 16384

typedef struct {
  const float *x, *weight, *bias;
  const char *branch; /* bfloat16 (rows, width), or none */
  float *sum;         /* x plus branch; where there is no branch, x itself */
  char *out;          /* bfloat16 */
  float *mean, *inverse;
  const char *of_out;               /* bfloat16 */
  const float *of_sum;              /* or none */
  float *of_x;
  char *of_branch;                  /* of_x in bfloat16, or none */
  float *of_weights;                /* (chunks, 2, width): of weight and of bias */
  int64_t rows, width;
  float eps;
  int64_t next;
} Norm;

static void norm_row(const Norm *job, int64_t row) {
  int64_t width = job->width;
  const float *x = job->x + row * width;
  __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += VECTOR) {
    __m512 value = _mm512_loadu_ps(x + c);
    if (job->branch) {
      value = _mm512_add_ps(value, wide(job->branch + 2 * (row * width + c)));
      _mm512_storeu_ps(job->sum + row * width + c, value);
    }
    total = _mm512_add_ps(total, value);
  }
  x = job->sum + row * width;
  float mean = _mm512_reduce_add_ps(total) / (float)width;
  for (int64_t c = 0; c < width; c += VECTOR) {
    __m512 value = _mm512_sub_ps(_mm512_loadu_ps(x + c), _mm512_set1_ps(mean));
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  float inverse = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / (float)width + job->eps);
  for (int64_t c = 0; c < width; c += VECTOR) {
    __m512 value = _mm512_sub_ps(_mm512_loadu_ps(x + c), _mm512_set1_ps(mean));
    value = _mm512_mul_ps(value, _mm512_set1_ps(inverse));
    value = _mm512_fmadd_ps(value, _mm512_loadu_ps(job->weight + c), _mm512_loadu_ps(job->bias + c));
    narrow(job->out + 2 * (row * width + c), value);
  }
  job->mean[row] = mean, job->inverse[row] = inverse;
}

static void norm_row_back(const Norm *job, int64_t row, float *of_weight, float *of_bias) {
  int64_t width = job->width, at = row * width;
  __m512 mean = _mm512_set1_ps(job->mean[row]), inverse = _mm512_set1_ps(job->inverse[row]);
  __m512 total = _mm512_setzero_ps(), along = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += VECTOR) {
    __m512 normed = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(job->sum + at + c), mean), inverse);
    __m512 grad = wide(job->of_out + 2 * (at + c));
    _mm512_storeu_ps(of_weight + c, _mm512_fmadd_ps(grad, normed, _mm512_loadu_ps(of_weight + c)));
    _mm512_storeu_ps(of_bias + c, _mm512_add_ps(grad, _mm512_loadu_ps(of_bias + c)));
    grad = _mm512_mul_ps(grad, _mm512_loadu_ps(job->weight + c));
    total = _mm512_add_ps(total, grad);
    along = _mm512_fmadd_ps(grad, normed, along);
  }
  __m512 less = _mm512_set1_ps(_mm512_reduce_add_ps(total) / (float)width);
  __m512 slope = _mm512_set1_ps(_mm512_reduce_add_ps(along) / (float)width);
  for (int64_t c = 0; c < width; c += VECTOR) {
    __m512 normed = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(job->sum + at + c), mean), inverse);
    __m512 grad = _mm512_mul_ps(wide(job->of_out + 2 * (at + c)), _mm512_loadu_ps(job->weight + c));
    grad = _mm512_fnmadd_ps(normed, slope, _mm512_sub_ps(grad, less));
    __m512 rest = job->of_sum ? _mm512_loadu_ps(job->of_sum + at + c) : _mm512_setzero_ps();
    grad = _mm512_fmadd_ps(grad, inverse, rest);
    _mm512_storeu_ps(job->of_x + at + c, grad);
    if (job->of_branch) narrow(job->of_branch + 2 * (at + c), grad);
  }
}

static void norm_share(void *given) {
  Norm *job = given;
  for (int64_t from; (from = CHUNK * taken(&job->next, 1)) < job->rows;)
    for (int64_t row = from; row < from + CHUNK && row < job->rows; row++) norm_row(job, row);
}

static void norm_back_share(void *given) {
  Norm *job = given;
  for (int64_t chunk; CHUNK * (chunk = taken(&job->next, 1)) < job->rows;) {
    float *of_weight = job->of_weights + 2 * chunk * job->width, *of_bias = of_weight + job->width;
    memset(of_weight, 0, 8 * job->width);
    for (int64_t row = CHUNK * chunk; row < CHUNK * (chunk + 1) && row < job->rows; row++)
      norm_row_back(job, row, of_weight, of_bias);
  }
}

typedef struct {
  const char *x, *grad; /* bfloat16; grad is read by the backward pass alone */
  char *out;
  int64_t count, next;
} Gelu;

/* The chance that a standard normal number is below x, and (in ``density``) its density there.
   Abramowitz and Stegun's formula 7.1.26, to 2e-6. */
INLINE __m512 below(__m512 x, __m512 *density) {
  __m512 size = _mm512_abs_ps(x);
  __m512 bell = exp2_of(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752044448170f)));
  __m512 t = _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f * 0.70710678118654752f), _mm512_set1_ps(1.0f));
  t = _mm512_div_ps(_mm512_set1_ps(1.0f), t);
  __m512 y = _mm512_set1_ps(1.061405429f / 2);
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-1.453152027f / 2));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f / 2));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f / 2));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f / 2));
  y = _mm512_mul_ps(_mm512_mul_ps(y, t), bell); /* beyond |x| */
  *density = _mm512_mul_ps(bell, _mm512_set1_ps(0.39894228040143268f));
  return _mm512_mask_sub_ps(y, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(1.0f), y);
}

INLINE void gelu(const Gelu *job, int64_t at, const int back) {
  __m512 x = wide(job->x + 2 * at), density, share = below(x, &density);
  if (back) x = _mm512_mul_ps(wide(job->grad + 2 * at), _mm512_fmadd_ps(x, density, share));
  else x = _mm512_mul_ps(x, share);
  narrow(job->out + 2 * at, x);
}

static void gelu_share(void *given) {
  Gelu *job = given;
  for (int64_t from; (from = NUMBERS * taken(&job->next, 1)) < job->count;)
    for (int64_t at = from; at < from + NUMBERS && at < job->count; at += VECTOR) gelu(job, at, 0);
}

static void gelu_back_share(void *given) {
  Gelu *job = given;
  for (int64_t from; (from = NUMBERS * taken(&job->next, 1)) < job->count;)
    for (int64_t at = from; at < from + NUMBERS && at < job->count; at += VECTOR) gelu(job, at, 1);
}

int64_t norm_chunks(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }
int64_t norm_bytes(void) { return sizeof(Norm); }
int64_t gelu_bytes(void) { return sizeof(Gelu); }

void norm_forward(Norm *job, Parallel parallel, unsigned threads) { run(job, norm_share, parallel, threads); }
void norm_backward(Norm *job, Parallel parallel, unsigned threads) { run(job, norm_back_share, parallel, threads); }
void gelu_forward(Gelu *job, Parallel parallel, unsigned threads) { run(job, gelu_share, parallel, threads); }
void gelu_backward(Gelu *job, Parallel parallel, unsigned threads) { run(job, gelu_back_share, parallel, threads); }
