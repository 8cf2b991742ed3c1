/* Sums, norms and GELU over many shapes in memory that ends where its tensors end; run under sanitizers. */
#include "tokens.c"

#include <stdlib.h>

static void once(int64_t rows, int64_t width, int branched, int of_sum) {
  int64_t count = rows * width;
  float *x = calloc(count, 4), *sum = branched ? calloc(count, 4) : x, *grad = calloc(count, 4);
  char *branch = calloc(count, 2), *of_out = calloc(count, 2);
  Norm job = {
    .x = x, .weight = calloc(width, 4), .bias = calloc(width, 4), .branch = branched ? branch : 0, .sum = sum,
    .out = malloc(2 * count), .mean = malloc(4 * rows), .inverse = malloc(4 * rows), .of_out = of_out,
    .of_sum = of_sum ? grad : 0, .of_x = malloc(4 * count), .of_branch = branched ? malloc(2 * count) : 0,
    .of_weights = malloc(8 * width * norm_chunks(rows)), .rows = rows, .width = width, .eps = 1e-6f};
  norm_forward(&job, 0, 1);
  job.next = 0;
  norm_backward(&job, 0, 1);
  Gelu gelu = {.x = branch, .grad = of_out, .out = job.out, .count = count};
  gelu_forward(&gelu, 0, 1);
  gelu.next = 0;
  gelu_backward(&gelu, 0, 1);
  if (branched) free(sum);
  void *made[] = {x, grad, branch, of_out, (void *)job.weight, (void *)job.bias, job.out, job.mean, job.inverse,
                  job.of_x, job.of_branch, job.of_weights};
  for (int i = 0; i < 12; i++) free(made[i]);
}

int main(void) {
  const int64_t rows[] = {1, 2, 255, 256, 257, 600}, widths[] = {16, 48, 192};
  for (int i = 0; i < 6; i++)
    for (int j = 0; j < 3; j++)
      for (int way = 0; way < 4; way++) once(rows[i], widths[j], way % 2, way / 2);
  return 0;
}
