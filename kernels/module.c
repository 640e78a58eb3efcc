/* kernels/module.c - finds and loads the CUDA backend, kernels_cuda.so: beside the program first,
 * so that a bundle can be carried anywhere, then wherever the system looks. Loading is all that is
 * done here: which device is used, and whether it will do, is the module's affair. */
#include "kernels/module.h"

#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

static const char module_name[] = "kernels_cuda.so";

static void module_log(int level, const char *file, int line, const char *text)
{
    log_write((log_level)level, file, line, "%s", text);
}

/* NULL: not beside the program; dlerror tells the cause when the file is there. */
static void *load_beside_program(void)
{
    char path[4096];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof module_name - 4);
    if (length <= 0) return NULL;
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (slash == NULL) return NULL;
    memcpy(slash + 1, module_name, sizeof module_name);
    if (access(path, R_OK) != 0) { /* a test program stands one folder below */
        *slash = '\0';
        slash = strrchr(path, '/');
        if (slash == NULL) return NULL;
        memcpy(slash + 1, module_name, sizeof module_name);
    }
    return access(path, R_OK) == 0 ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

status kern_cuda_open(const kern_config *config, kern_backend **out_backend)
{
    CHECK(config != NULL && out_backend != NULL);
    void *module = load_beside_program();
    const char *cause = module == NULL ? dlerror() : NULL;
    if (module == NULL && cause == NULL) {
        module = dlopen(module_name, RTLD_NOW | RTLD_LOCAL);
        cause = dlerror();
    }
    if (module == NULL)
        return FAIL(UNSUPPORTED, "the CUDA backend cannot be loaded: %s",
                    cause == NULL ? "unknown cause" : cause);
    kern_module_open_function open_module = NULL;
    void *symbol = dlsym(module, KERN_MODULE_OPEN);
    if (symbol == NULL)
        return FAIL(UNSUPPORTED, "%s is not a backend of this program", module_name);
    memcpy(&open_module, &symbol, sizeof open_module); /* POSIX: a function pointer fits */
    const kern_module_host host = {module_log, kern_module_layout()};
    return open_module(&host, config, out_backend);
}
