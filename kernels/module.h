/* kernels/module.h - the seam between the program and a backend it loads with dlopen.
 *
 * A module exports one function, KERN_MODULE_OPEN, and takes what it needs of the program through
 * kern_module_host: it links no part of it.
 *
 * Threads: as kernels.h. Memory: the backend is closed by kern_backend_close; the module stays
 * loaded. */
#ifndef KERNELS_MODULE_H
#define KERNELS_MODULE_H

#ifndef __cplusplus
#include "kernels/backend.h"
#endif

typedef struct kern_module_host {
    void (*log)(int level, const char *file, int line, const char *text);
    uint64_t layout; /* kern_module_layout() of the program */
} kern_module_host;

/* A number that changes with the op table and the size of every structure that passes the seam: a
 * module of other sources would read arguments at other places, and compute something. */
static inline uint64_t kern_module_layout(void)
{
    const uint64_t sizes[] = {
#define X(op) sizeof(kern_##op##_args),
        KERN_ALL_OPS(X)
#undef X
            sizeof(kern_selector),
        sizeof(kern_exchange),
        sizeof(kern_miss),
        sizeof(kern_arrival),
        sizeof(kern_host),
        sizeof(kern_sampling),
        sizeof(kern_sampled),
        sizeof(kern_ops),
        sizeof(kern_device_ops),
        sizeof(struct kern_backend),
    };
    static const char names[] =
#define X(op) #op " "
        KERN_ALL_OPS(X);
#undef X
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint64_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        hash = (hash ^ sizes[i]) * UINT64_C(0x100000001b3);
    for (uint64_t i = 0; i + 1 < sizeof names; i++)
        hash = (hash ^ (uint64_t)names[i]) * UINT64_C(0x100000001b3);
    return hash;
}

#define KERN_MODULE_OPEN "kern_module_open"

#ifndef __cplusplus
typedef status (*kern_module_open_function)(const kern_module_host *host, const kern_config *config,
                                            kern_backend **out_backend);

/* "cuda": the module kernels_cuda beside the program or in its library path. UNSUPPORTED, with one
 * sentence, when it is not there, cannot be loaded, or finds no usable device. */
status kern_cuda_open(const kern_config *config, kern_backend **out_backend);
#endif

#endif
