/* Attention over many shapes in memory that ends where its tensors end; run under sanitizers. */
#include "attention.c"

#include <stdlib.h>

static char *numbers(int64_t count) {
  uint16_t *made = malloc(2 * count);
  for (int64_t i = 0; i < count; i++) made[i] = (uint16_t)(rand() % 2 << 15 | 0x3e00 | rand() % 256); /* 0.125 to 0.5 */
  return (char *)made;
}

static View part_of(char *packed, int64_t tokens, int64_t dim, int64_t parts, int64_t which) {
  return (View){packed + 2 * which * dim, 2 * tokens * parts * dim, 2 * parts * dim};
}

static void once(int64_t tokens, int64_t width, int64_t maps, int rotary) {
  int64_t images = 2, heads = 2, dim = heads * maps * width, rows = images * heads * tokens;
  char *x = numbers(images * tokens * 3 * dim), *grad = numbers(images * tokens * dim);
  char *of_x = malloc(2 * images * tokens * 3 * dim), *out = malloc(2 * images * tokens * dim);
  float *turn = malloc(8 * tokens * width);
  for (int64_t i = 0; i < 2 * tokens * width; i++) turn[i] = 0.5f;
  Job job = {
    .q = part_of(x, tokens, dim, 3, 0), .k = part_of(x, tokens, dim, 3, 1), .v = part_of(x, tokens, dim, 3, 2),
    .of_q = part_of(of_x, tokens, dim, 3, 0), .of_k = part_of(of_x, tokens, dim, 3, 1),
    .of_v = part_of(of_x, tokens, dim, 3, 2), .out = part_of(out, tokens, dim, 1, 0),
    .grad = part_of(grad, tokens, dim, 1, 0), .top = malloc(4 * maps * rows), .inverse = malloc(4 * maps * rows),
    .length = malloc(4 * rows), .of_lam = malloc(4 * images * heads), .turn = rotary ? turn : 0, .images = images,
    .tokens = tokens, .heads = heads, .maps = maps, .width = width, .lam = 0.3f, .eps = 1e-5f};
  job.scratch = malloc(scratch_bytes(&job));
  attention_forward(&job, 0, 1);
  attention_backward(&job, 0, 1);
  void *made[] = {x, grad, of_x, out, turn, job.top, job.inverse, job.length, job.of_lam, job.scratch};
  for (int i = 0; i < 10; i++) free(made[i]);
}

int main(void) {
  const int64_t tokens[] = {1, 2, 15, 16, 17, 33, 64, 65, 66, 129, 257, 300}, widths[] = {16, 32, 48, 128};
  for (int i = 0; i < 12; i++)
    for (int j = 0; j < 4; j++)
      for (int way = 0; way < 4; way++) once(tokens[i], widths[j], 1 + way % 2, way / 2);
  return 0;
}
