/* worker/verbs.h - the verbs of shoal-worker. Each returns the program's exit code.
 *
 * Threads: the calling thread steps the engine. Memory: none is left. */
#ifndef WORKER_VERBS_H
#define WORKER_VERBS_H

/* argv[0] is the verb. */
int worker_decode(int argc, char **argv);
int worker_eval(int argc, char **argv);
int worker_bench(int argc, char **argv); /* argv[1] is what to measure: decode */
int worker_doctor(int argc, char **argv);

#endif
