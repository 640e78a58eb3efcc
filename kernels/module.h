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
} kern_module_host;

#define KERN_MODULE_OPEN "kern_module_open"

#ifndef __cplusplus
typedef status (*kern_module_open_function)(const kern_module_host *host, const kern_config *config,
                                            kern_backend **out_backend);

/* "cuda": the module kernels_cuda beside the program or in its library path. UNSUPPORTED, with one
 * sentence, when it is not there, cannot be loaded, or finds no usable device. */
status kern_cuda_open(const kern_config *config, kern_backend **out_backend);
#endif

#endif
