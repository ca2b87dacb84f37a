/* The functions of NVML that we use, for two GPUs: the second tells of its memory alone, a third is lost. */

typedef void *device_t;
struct utilization { unsigned int gpu, memory; };
struct memory { unsigned long long total, free, used; };

static int started;
static int gpus[3];

const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : code == 1 ? "Uninitialized" : "Other"; }
int nvmlInitWithFlags(unsigned int flags) { started = flags == 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return started ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device) { *device = &gpus[index]; return index < 2 ? 0 : 15; }
int nvmlDeviceGetUtilizationRates(device_t device, struct utilization *found)
{
    found->gpu = 42;
    found->memory = 7;
    return device == &gpus[0] ? 0 : 3;
}
int nvmlDeviceGetMemoryInfo(device_t device, struct memory *found)
{
    found->total = 1ULL << 37;
    found->free = (1ULL << 37) - (1ULL << 35);
    found->used = 1ULL << 35;
    return 0;
}
int nvmlDeviceGetPowerUsage(device_t device, unsigned int *milliwatts) { *milliwatts = 350500; return device == &gpus[0] ? 0 : 3; }
int nvmlDeviceGetTemperature(device_t device, int sensor, unsigned int *celsius)
{
    *celsius = sensor == 0 ? 66 : 0;
    return device == &gpus[0] ? 0 : 4;
}
int nvmlDeviceGetTotalEnergyConsumption(device_t device, unsigned long long *millijoules)
{
    *millijoules = 12000500;
    return device == &gpus[0] ? 0 : 3;
}
int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned int length)
{
    const char *known = device == &gpus[0] ? "GPU-1" : "GPU-2";
    unsigned int at = 0;
    do uuid[at] = known[at]; while (known[at++] && at < length);
    return 0;
}
