#include "qemu/osdep.h"
#include "smmuv3-accel-machine.h"
int main(int argc, char **argv)
{
    return 0;
}
