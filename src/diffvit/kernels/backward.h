/* One head, backward: the gradients of its queries, keys and values, and of lam. */
/* The gradient of what the rows have read, before the division by the root mean square. */
static void gradient_of_read(const Head *head, int64_t start, int64_t rows) {
  const Job *job = head->job;
  int64_t width = head->s.value;
  for (int64_t i = 0; i < rows; i++) {
    const char *grad = row_of(head, job->grad, start + i, 0), *out = row_of(head, job->out, start + i, 0);
    __m512 along = _mm512_setzero_ps(), by = _mm512_set1_ps(job->length[head->index * job->tokens + start + i]);
    for (int64_t c = 0; c < width; c += VECTOR) along = _mm512_fmadd_ps(wide(grad + 2 * c), wide(out + 2 * c), along);
    __m512 less = _mm512_set1_ps(-_mm512_reduce_add_ps(along) / (float)width);
    for (int64_t c = 0; c < width; c += VECTOR) {
      __m512 across = _mm512_fmadd_ps(wide(out + 2 * c), less, wide(grad + 2 * c));
      narrow(head->at.of_read + 2 * (i * width + c), _mm512_mul_ps(by, across));
    }
  }
}

/* Scores to probabilities, and of each row the sum of probability times gradient (dots); returns the sum of those. */
static float probabilities(const Head *head, int m, int64_t start, int64_t rows) {
  const Job *job = head->job;
  int64_t columns = head->s.columns, place = (head->index * job->maps + m) * job->tokens + start;
  __m512 scale = _mm512_set1_ps(head->s.scale);
  float all = 0.0f;
  for (int64_t i = 0; i < rows; i++) {
    float *row = head->at.scores[m] + i * columns, *of_row = head->at.of_map + i * columns;
    __m512 less = _mm512_set1_ps(-job->top[place + i]), by = _mm512_set1_ps(job->inverse[place + i]);
    __m512 dot = _mm512_setzero_ps();
    for (int64_t c = 0; c < columns; c += VECTOR) {
      __m512 p = exp2_of(_mm512_fmadd_ps(_mm512_loadu_ps(row + c), scale, less));
      p = _mm512_maskz_mul_ps(within(c, job->tokens), p, by);
      dot = _mm512_fmadd_ps(p, _mm512_loadu_ps(of_row + c), dot);
      _mm512_storeu_ps(row + c, p);
    }
    head->at.dots[i] = _mm512_reduce_add_ps(dot);
    all += head->at.dots[i];
  }
  return all;
}

/* Of two rows of a map: the gradient of its scores, as rows and as pairs; and, of the last map, pairs of all maps' sum.
   The second row may be one too many: then nothing of it is read but the zeros put into the pairs. */
INLINE void two_rows(const Head *head, int m, int64_t i, const int second) {
  const Job *job = head->job;
  int64_t columns = head->s.columns;
  float weight = m ? -job->lam : 1.0f;
  __m512 share = _mm512_set1_ps(weight), scaled = _mm512_set1_ps(weight / __builtin_sqrtf((float)job->width));
  __m512 zero = _mm512_setzero_ps();
  __m512 less0 = _mm512_set1_ps(head->at.dots[i]), less1 = second ? _mm512_set1_ps(head->at.dots[i + 1]) : zero;
  for (int64_t c = 0; c < columns; c += VECTOR) {
    int64_t here = i * columns + c, next = here + columns, pair = i / 2 * columns + c;
    const float *p = head->at.scores[m], *of = head->at.of_map;
    __m512 p0 = _mm512_loadu_ps(p + here), p1 = second ? _mm512_loadu_ps(p + next) : zero;
    __m512 of0 = _mm512_loadu_ps(of + here), of1 = second ? _mm512_loadu_ps(of + next) : zero;
    if (m == job->maps - 1) {
      __m512 w0 = p0, w1 = p1;
      if (m) {
        w0 = _mm512_fmadd_ps(p0, share, _mm512_loadu_ps(head->at.scores[0] + here));
        w1 = second ? _mm512_fmadd_ps(p1, share, _mm512_loadu_ps(head->at.scores[0] + next)) : zero;
      }
      _mm512_storeu_si512(head->at.pairs_of_map + pair, paired(both(w0, w1)));
    }
    p0 = _mm512_mul_ps(_mm512_mul_ps(p0, scaled), _mm512_sub_ps(of0, less0));
    p1 = _mm512_mul_ps(_mm512_mul_ps(p1, scaled), _mm512_sub_ps(of1, less1));
    __m512i rows = both(p0, p1);
    _mm256_storeu_si256((void *)(head->at.of_scores + 2 * here), _mm512_castsi512_si256(rows));
    _mm256_storeu_si256((void *)(head->at.of_scores + 2 * next), _mm512_extracti64x4_epi64(rows, 1));
    _mm512_storeu_si512(head->at.pairs_of_scores + pair, paired(rows));
  }
}

/* Rows of floats to bfloat16; queries and keys are turned back to where they stood before their places turned them. */
INLINE void store(const Head *head, View view, int64_t start, int64_t rows, int64_t map, const float *from,
                  int64_t width, const float *turn) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t c = 0; c < width; c += VECTOR) {
      __m512 x = _mm512_loadu_ps(from + i * width + c);
      if (turn) x = turned(x, turn + 2 * (start + i) * width + c, width, 1);
      narrow(row_of(head, view, start + i, map) + 2 * c, x);
    }
}

/* Gradients of one map's queries, and what these add to those of its keys. */
static void through_scores(const Head *head, int m, int64_t start, int64_t rows) {
  const Job *job = head->job;
  Sizes s = head->s;
  int64_t width = job->width, i = 0;
  for (; i + 2 <= rows; i += 2) two_rows(head, m, i, 1);
  if (i < rows) two_rows(head, m, i, 0);
  Left of_scores = {head->at.of_scores, 2 * s.columns, 4};
  Left down = {(char *)head->at.pairs_of_scores, 4, 4 * s.columns};
  product(rows, width, s.pairs, of_scores, head->at.pairs_of_keys[m], head->at.read);
  store(head, job->of_q, start, rows, m, head->at.read, width, job->turn);
  interleave(head->q[m].at + start * head->q[m].row, head->q[m].row, rows, width, head->at.pairs_of_query);
  (start ? product_added : product)(job->tokens, width, (rows + 1) / 2, down, head->at.pairs_of_query,
                                    head->at.of_key[m]);
}

static void backward_head(const Head *head) {
  const Job *job = head->job;
  Sizes s = head->s;
  int64_t tokens = job->tokens;
  fetch(head, job->q, 0), fetch(head, job->k, 0), fetch(head, job->v, 0), fetch(head, job->grad, 0);
  fetch(head, job->of_q, 1), fetch(head, job->of_k, 1), fetch(head, job->of_v, 1);
  if (job->maps == 2) fetch(head, job->out, 0);
  transpose(row_of(head, job->v, 0, 0), job->v.token, tokens, s.value, head->at.values, s.columns);
  for (int m = 0; m < job->maps; m++) {
    transpose(head->k[m].at, head->k[m].row, tokens, job->width, head->at.keys[m], s.columns);
    interleave(head->k[m].at, head->k[m].row, tokens, job->width, head->at.pairs_of_keys[m]);
  }
  float of_lam = 0.0f;
  Left down = {(char *)head->at.pairs_of_map, 4, 4 * s.columns};
  for (int64_t start = 0; start < tokens; start += s.rows) {
    int64_t rows = tokens - start < s.rows ? tokens - start : s.rows;
    Left of_read = {row_of(head, job->grad, start, 0), job->grad.token, 4};
    if (job->maps == 2) {
      gradient_of_read(head, start, rows);
      of_read = (Left){head->at.of_read, 2 * s.value, 4};
    }
    product(rows, s.columns, s.value / 2, of_read, head->at.values, head->at.of_map);
    for (int m = 0; m < job->maps; m++) {
      scores_of(head, m, start, rows);
      float dots = probabilities(head, m, start, rows);
      if (m) of_lam -= dots;
      through_scores(head, m, start, rows);
    }
    interleave(of_read.at, of_read.row, rows, s.value, head->at.pairs_of_read);
    (start ? product_added : product)(tokens, s.value, (rows + 1) / 2, down, head->at.pairs_of_read, head->at.of_value);
  }
  if (job->maps == 2) job->of_lam[head->index] = of_lam;
  for (int m = 0; m < job->maps; m++) store(head, job->of_k, 0, tokens, m, head->at.of_key[m], job->width, job->turn);
  store(head, job->of_v, 0, tokens, 0, head->at.of_value, s.value, 0);
}
