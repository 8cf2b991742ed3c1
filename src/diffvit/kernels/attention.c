/* What stands between the projections of an attention layer, forward and backward; one head of one image at a time.

   No map leaves a core's cache: the backward pass makes it again from each row's maximum and sum, as flash attention
   does (arXiv 2307.08691). Softmax attention is one map per head. Differential attention (arXiv 2410.05258) is two, the
   second taken off lam times, with a value of twice the width, divided by its root mean square.
   diffvit.kernels.native fills in Job. */
#include "threads.h"
#include "bfloat16.h"
#include "layout.h"
#include "forward.h"
#include "backward.h"

#define AT_ONCE 4 /* heads that a thread takes */

static void share(Job *job, void (*one)(const Head *)) {
  Head head = {.job = job, .s = sizes_of(job)};
  int64_t thread = taken(&job->next_thread, 1), all = job->images * job->heads;
  lay_out(job, head.s, job->scratch + thread * bytes_of_scratch(job), &head.at);
  for (;;) {
    int64_t from = taken(&job->next_head, AT_ONCE);
    if (from >= all) return;
    for (head.index = from; head.index < from + AT_ONCE && head.index < all; head.index++) {
      head.image = head.index / job->heads;
      head.column = head.index % job->heads * head.s.value;
      find_rows(&head);
      one(&head);
    }
  }
}

static void forward_share(void *job) { share(job, forward_head); }
static void backward_share(void *job) { share(job, backward_head); }

int64_t attention_bytes(void) { return sizeof(Job); }
int64_t scratch_bytes(const Job *job) { return bytes_of_scratch(job); }

void attention_forward(Job *job, Parallel parallel, unsigned threads) {
  job->next_head = job->next_thread = 0;
  run(job, forward_share, parallel, threads);
}

void attention_backward(Job *job, Parallel parallel, unsigned threads) {
  job->next_head = job->next_thread = 0;
  run(job, backward_share, parallel, threads);
}
