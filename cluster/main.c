/* cluster/main.c - the program `shoal`; everything is in cluster/cli. */
#include "cluster/cli/cli.h"

int main(int argc, char **argv)
{
    return cli_main(argc, argv);
}
