/* One head, forward: its output, and what the backward pass needs to make the maps again. */
/* Scores of one map to exponentials, with each row's maximum and 1 / sum; into at.map where there is one map only. */
static void exponentials(const Head *head, int m, int64_t start, int64_t rows) {
  const Job *job = head->job;
  Sizes s = head->s;
  int64_t place = (head->index * job->maps + m) * job->tokens + start;
  float *top = job->top + place, *inverse = job->inverse + place;
  for (int64_t i = 0; i < rows; i++) {
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (int64_t c = 0; c < s.columns; c += VECTOR) {
      __m512 scores = _mm512_loadu_ps(head->at.scores[m] + i * s.columns + c);
      most = _mm512_mask_max_ps(most, within(c, job->tokens), most, scores);
    }
    top[i] = _mm512_reduce_max_ps(most) * s.scale;
  }
  __m512 scale = _mm512_set1_ps(s.scale);
  for (int64_t i = 0; i < rows; i++) {
    float *row = head->at.scores[m] + i * s.columns;
    __m512 sum = _mm512_setzero_ps(), less = _mm512_set1_ps(-top[i]);
    for (int64_t c = 0; c < s.columns; c += VECTOR) {
      __m512 e = exp2_of(_mm512_fmadd_ps(_mm512_loadu_ps(row + c), scale, less));
      e = _mm512_maskz_mov_ps(within(c, job->tokens), e);
      sum = _mm512_add_ps(sum, e);
      if (job->maps == 1) narrow(head->at.map + 2 * (i * s.columns + c), e);
      else _mm512_storeu_ps(row + c, e);
    }
    inverse[i] = _mm512_reduce_add_ps(sum);
  }
  for (int64_t i = 0; i < rows; i++) inverse[i] = 1.0f / inverse[i];
}

/* at.map = the first map less lam times the second. */
static void subtract(const Head *head, int64_t start, int64_t rows) {
  const Job *job = head->job;
  int64_t columns = head->s.columns;
  const float *inverse = job->inverse + head->index * 2 * job->tokens + start;
  for (int64_t i = 0; i < rows; i++) {
    __m512 plus = _mm512_set1_ps(inverse[i]), minus = _mm512_set1_ps(-job->lam * inverse[job->tokens + i]);
    for (int64_t c = i * columns; c < (i + 1) * columns; c += VECTOR) {
      __m512 first = _mm512_mul_ps(_mm512_loadu_ps(head->at.scores[0] + c), plus);
      narrow(head->at.map + 2 * c, _mm512_fmadd_ps(_mm512_loadu_ps(head->at.scores[1] + c), minus, first));
    }
  }
}

/* What the rows have read, divided: by the row's sum (one map), or by the root mean square (two). */
static void write_out(const Head *head, int64_t start, int64_t rows) {
  const Job *job = head->job;
  int64_t place = head->index * job->tokens + start, width = head->s.value;
  for (int64_t i = 0; i < rows; i++) {
    const float *read = head->at.read + i * width;
    char *to = row_of(head, job->out, start + i, 0);
    float by;
    if (job->maps == 1) {
      by = job->inverse[place + i];
    } else {
      __m512 squares = _mm512_setzero_ps();
      for (int64_t c = 0; c < width; c += VECTOR) {
        __m512 x = _mm512_loadu_ps(read + c);
        squares = _mm512_fmadd_ps(x, x, squares);
      }
      by = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / (float)width + job->eps);
      job->length[place + i] = by;
    }
    for (int64_t c = 0; c < width; c += VECTOR)
      narrow(to + 2 * c, _mm512_mul_ps(_mm512_loadu_ps(read + c), _mm512_set1_ps(by)));
  }
}

static void forward_head(const Head *head) {
  const Job *job = head->job;
  Sizes s = head->s;
  fetch(head, job->q, 0), fetch(head, job->k, 0), fetch(head, job->v, 0), fetch(head, job->out, 1);
  for (int m = 0; m < job->maps; m++)
    transpose(head->k[m].at, head->k[m].row, job->tokens, job->width, head->at.keys[m], s.columns);
  interleave(row_of(head, job->v, 0, 0), job->v.token, job->tokens, s.value, head->at.pairs_of_values);
  Left map = {head->at.map, 2 * s.columns, 4};
  for (int64_t start = 0; start < job->tokens; start += s.rows) {
    int64_t rows = job->tokens - start < s.rows ? job->tokens - start : s.rows;
    for (int m = 0; m < job->maps; m++) {
      scores_of(head, m, start, rows);
      exponentials(head, m, start, rows);
    }
    if (job->maps == 2) subtract(head, start, rows);
    product(rows, s.value, s.pairs, map, head->at.pairs_of_values, head->at.read);
    write_out(head, start, rows);
  }
}
