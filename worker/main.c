/* worker/main.c - shoal-worker: hands the command line to a verb. */
#include "proto/base.h"
#include "worker/verbs.h"

#include <stdio.h>
#include <string.h>

static const char usage[] =
    "shoal-worker - decode batches of long prompts whose KV cache lives in a store\n"
    "\n"
    "usage: shoal-worker VERB [arguments]\n"
    "\n"
    "verbs:\n"
    "  decode    answer the prompts of a batch file\n"
    "  eval      bits a byte and planted keys of a model with a selector\n"
    "  bench     bench decode: speed of decoding, beside what bounds it\n"
    "  doctor    measure this host and say what is misconfigured\n"
    "  version   print the version\n"
    "\n"
    "examples:\n"
    "  shoal-worker decode --help\n"
    "  shoal-worker version\n";

int main(int argc, char **argv)
{
    log_setup(&(log_config){.level = LOG_WARN, .program = "shoal-worker"});
    const char *verb = argc > 1 ? argv[1] : "";
    if (strcmp(verb, "decode") == 0) return worker_decode(argc - 1, argv + 1);
    if (strcmp(verb, "eval") == 0) return worker_eval(argc - 1, argv + 1);
    if (strcmp(verb, "bench") == 0) return worker_bench(argc - 1, argv + 1);
    if (strcmp(verb, "doctor") == 0) return worker_doctor(argc - 1, argv + 1);
    if (strcmp(verb, "version") == 0 || strcmp(verb, "--version") == 0)
        return printf("shoal-worker %s\n", SHOAL_VERSION) < 0;
    if (strcmp(verb, "--help") == 0 || strcmp(verb, "help") == 0) return fputs(usage, stdout) < 0;
    (void)fprintf(stderr, "shoal-worker: %s%s%s\n\n%s",
                  verb[0] ? "unknown verb " : "a verb is missing", verb, "", usage);
    return status_exit_code(STATUS_INVALID);
}
