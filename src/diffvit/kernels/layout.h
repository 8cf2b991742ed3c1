/* What an attention call is given, and where one head's work lies. */
typedef struct {
  char *data;
  int64_t image, token; /* bytes from one to the next */
} View;

typedef struct {
  View q, k, v, out, grad, of_q, of_k, of_v; /* bfloat16 (images, tokens, heads * maps * width) */
  float *top, *inverse;                      /* (images, heads, maps, tokens): a row's maximum (base 2), 1 / its sum */
  float *length;                             /* (images, heads, tokens): 1 / root mean square; differential only */
  float *of_lam;                             /* (images, heads); differential only */
  const float *turn;                         /* (tokens, 2, width): cosine, signed sine of the places; or none */
  char *scratch;                             /* scratch_bytes() for each thread */
  int64_t images, tokens, heads, maps, width;
  float lam, eps;
  int64_t next_head, next_thread; /* taken by the threads, from 0 on */
} Job;

typedef struct {
  int64_t pairs, columns; /* of tokens; tokens up to whole vectors */
  int64_t value, rows;    /* width of a value; queries worked on at once */
  float scale;            /* of a score, to the base 2 */
} Sizes;

typedef struct {
  uint32_t *keys[2], *values, *pairs_of_keys[2], *pairs_of_values;           /* right factors */
  uint32_t *pairs_of_map, *pairs_of_scores, *pairs_of_read, *pairs_of_query; /* the same of one block's rows */
  float *scores[2], *of_map, *read, *dots, *of_key[2], *of_value;
  char *map, *of_scores, *of_read, *turned_q[2], *turned_k[2];
} Scratch;

#define L1_HALF 24576 /* bytes of scores that are worked on at once */

static Sizes sizes_of(const Job *job) {
  int64_t tokens = job->tokens, columns = (tokens + VECTOR - 1) / VECTOR * VECTOR;
  int64_t most = L1_HALF / (4 * columns) < 8 ? 8 : L1_HALF / (4 * columns);
  int64_t blocks = (tokens + most - 1) / most;
  Sizes s = {.pairs = (tokens + 1) / 2, .columns = columns, .value = job->width * job->maps};
  s.rows = ((tokens + blocks - 1) / blocks + 1) / 2 * 2;
  s.scale = 1.4426950408889634f / __builtin_sqrtf((float)job->width);
  return s;
}

/* Where everything lies from ``from`` on; returns the end. */
static char *lay_out(const Job *job, Sizes s, char *from, Scratch *at) {
#define TAKE(what, bytes) (at->what = (void *)from, from += ((bytes) + 63) / 64 * 64)
  int64_t block = s.rows * s.columns;
  for (int m = 0; m < job->maps; m++) {
    TAKE(keys[m], 2 * job->width * s.columns);
    TAKE(pairs_of_keys[m], 4 * s.pairs * job->width);
    TAKE(scores[m], 4 * block);
    TAKE(of_key[m], 4 * job->tokens * job->width);
    TAKE(turned_q[m], 2 * job->tokens * job->width);
    TAKE(turned_k[m], 2 * job->tokens * job->width);
  }
  TAKE(values, 2 * s.value * s.columns);
  TAKE(pairs_of_values, 4 * s.pairs * s.value);
  TAKE(of_value, 4 * job->tokens * s.value);
  TAKE(of_map, 4 * block);
  TAKE(map, 2 * block);
  TAKE(of_scores, 2 * block);
  TAKE(pairs_of_map, 2 * block);
  TAKE(pairs_of_scores, 2 * block);
  TAKE(read, 4 * s.rows * s.value);
  TAKE(of_read, 2 * s.rows * s.value);
  TAKE(pairs_of_read, 2 * s.rows * s.value);
  TAKE(pairs_of_query, 2 * s.rows * job->width);
  TAKE(dots, 4 * s.rows);
#undef TAKE
  return from;
}

static int64_t bytes_of_scratch(const Job *job) {
  Scratch at;
  return lay_out(job, sizes_of(job), job->scratch, &at) - job->scratch;
}

typedef struct {
  const Job *job;
  Sizes s;
  Scratch at;
  int64_t index, image, column; /* of images * heads; of the image; first column of the head */
  Left q[2], k[2];              /* rows of each map's queries and keys, turned */
} Head;

INLINE char *row_of(const Head *head, View view, int64_t token, int64_t map) {
  return view.data + head->image * view.image + token * view.token + 2 * (head->column + map * head->job->width);
}

/* The rows that the next head will read or write, on their way while this one is computed. */
INLINE void fetch(const Head *head, View view, const int writes) {
  int64_t next = head->index + 1, heads = head->job->heads;
  if (next == head->job->images * heads) return;
  const char *at = view.data + next / heads * view.image + 2 * (next % heads) * head->s.value;
  for (int64_t j = 0; j < head->job->tokens; j++, at += view.token)
    for (int64_t c = 0; c < 2 * head->s.value; c += 64)
      if (writes) __builtin_prefetch(at + c, 1, 2);
      else __builtin_prefetch(at + c, 0, 2);
}

/* 16 numbers of a token turned by its place, or (back) as they were before: adjacent ones are a point in a plane. */
INLINE __m512 turned(__m512 x, const float *turn, int64_t width, const int back) {
  __m512 cosine = _mm512_loadu_ps(turn);
  __m512 across = _mm512_mul_ps(_mm512_permute_ps(x, 0xB1), _mm512_loadu_ps(turn + width));
  return back ? _mm512_fmsub_ps(x, cosine, across) : _mm512_fmadd_ps(x, cosine, across);
}

INLINE Left rows_of(const Head *head, View view, int m, char *scratch) {
  const Job *job = head->job;
  Left found = {row_of(head, view, 0, m), view.token, 4};
  if (!job->turn) return found;
  for (int64_t j = 0; j < job->tokens; j++)
    for (int64_t c = 0; c < job->width; c += VECTOR) {
      __m512 x = wide(found.at + j * found.row + 2 * c);
      narrow(scratch + 2 * (j * job->width + c), turned(x, job->turn + 2 * j * job->width + c, job->width, 0));
    }
  return (Left){scratch, 2 * job->width, 4};
}

INLINE void find_rows(Head *head) {
  for (int m = 0; m < head->job->maps; m++) {
    head->q[m] = rows_of(head, head->job->q, m, head->at.turned_q[m]);
    head->k[m] = rows_of(head, head->job->k, m, head->at.turned_k[m]);
  }
}

INLINE void scores_of(const Head *head, int m, int64_t start, int64_t rows) {
  Left queries = head->q[m];
  queries.at += start * queries.row;
  product(rows, head->s.columns, head->job->width / 2, queries, head->at.keys[m], head->at.scores[m]);
}
