/* Work shared out among the threads that torch has.

   GOMP_parallel of the OpenMP library that torch runs on: a second library would bring a second set of threads. */
#include <stdint.h>

typedef void (*Parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);

/* The next ``count`` pieces of work that nobody has taken yet; the first one's number. */
static inline int64_t taken(int64_t *next, int64_t count) { return __atomic_fetch_add(next, count, __ATOMIC_RELAXED); }

static inline void run(void *job, void (*share)(void *), Parallel parallel, unsigned threads) {
  if (threads > 1) parallel(share, job, threads, 0);
  else share(job);
}
