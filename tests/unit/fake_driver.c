// A CUDA driver without a GPU for tests: one pretended device (9.0, 1 GiB) whose memory is the host's and whose
// streams run at once. The kernel "scale" (y[i] = a * x[i]) really runs, so addresses and argument widths are tested.
// FAKE_DRIVER_VERSION and FAKE_DRIVER_MAJOR change what it says of itself. FAKE_DRIVER_GREEN is the number of SMs that
// green contexts may have: 0 hides their functions, fewer than 132 makes a split yield fewer groups than asked for.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef struct { unsigned grid[3], block[3], shared; void *stream; struct Attr *attrs; unsigned count; } Config;
struct Attr { int id; char pad[4]; int value[16]; };

static size_t total = 1ul << 30, used = 0, sizes[4096];
static void *blocks[4096];
static __thread void *stack[8];
static __thread int depth;
#define current stack[depth]
static int context, pinned, live_pinned;
static unsigned launches, last_shared, last_pdl, allowed_shared;

static int number(const char *name, int otherwise) { const char *s = getenv(name); return s ? atoi(s) : otherwise; }

R cuInit(unsigned f) { return number("FAKE_DRIVER_DEVICES", 1) ? 0 : 100; }
R cuDriverGetVersion(int *v) { *v = number("FAKE_DRIVER_VERSION", 13000); return 0; }
R cuDeviceGetCount(int *n) { *n = number("FAKE_DRIVER_DEVICES", 1); return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return i ? 101 : 0; }
R cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "Fake GPU"); return 0; }
R cuDeviceTotalMem(size_t *n, int d) { *n = total; return 0; }
R cuDeviceGetUuid(char *u, int d) { memset(u, 0, 16); return 0; }
R cuDeviceGetAttribute(int *v, int a, int d) {
    *v = a == 75 ? number("FAKE_DRIVER_MAJOR", 9) : a == 76 ? 0 : a == 16 ? 132 : a == 36 ? 3 : a == 37 ? 64 : 1;
    return 0;
}
R cuDevicePrimaryCtxRetain(void **c, int d) { *c = &context; return 0; }
R cuDevicePrimaryCtxRelease(int d) { return 0; }
R cuCtxGetCurrent(void **c) { *c = current; return 0; }
R cuCtxSetCurrent(void *c) { current = c; return 0; }
R cuCtxPushCurrent(void *c) { if (depth == 7) return 1; stack[++depth] = c; return 0; }
R cuCtxPopCurrent(void **c) { if (!current) return 201; if (c) *c = current; if (depth) depth--; else current = 0; return 0; }
R cuCtxGetDevice(int *d) { *d = 0; return current ? 0 : 201; }
R cuCtxGetStreamPriorityRange(int *a, int *b) { *a = 0; *b = -5; return 0; }
R cuCtxSynchronize(void) { return 0; }
R cuGetErrorName(R e, const char **s) { *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR"; return 0; }
R cuGetErrorString(R e, const char **s) { *s = e == 2 ? "out of memory" : e == 915 ? "insufficient resources" : "invalid argument"; return 0; }

R cuMemGetInfo(size_t *f, size_t *t) { *f = total - used; *t = total; return current ? 0 : 201; }
R cuMemAlloc(uint64_t *p, size_t n) {
    if (!current) return 201;
    if (used + n > total) return 2;
    void *m = aligned_alloc(256, (n + 255) / 256 * 256);
    memset(m, 0xCD, n);
    for (int i = 0; i < 4096; i++)
        if (!blocks[i]) { blocks[i] = m; sizes[i] = n; used += n; *p = (uint64_t)m; return 0; }
    return 2;
}
R cuMemFree(uint64_t p) {
    if (!current) return 201;
    for (int i = 0; i < 4096; i++)
        if (blocks[i] == (void *)p) { free((void *)p); blocks[i] = 0; used -= sizes[i]; return 0; }
    return 1;
}
R cuMemAllocHost(void **p, size_t n) { *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096); pinned++; live_pinned++; return current ? 0 : 201; }
R cuMemFreeHost(void *p) { free(p); live_pinned--; return 0; }
R cuMemcpyHtoDAsync(uint64_t d, const void *s, size_t n, void *stream) { memcpy((void *)d, s, n); return current ? 0 : 201; }
R cuMemcpyDtoHAsync(void *d, uint64_t s, size_t n, void *stream) { memcpy(d, (void *)s, n); return current ? 0 : 201; }
R cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *stream) { memset((void *)d, v, n); return current ? 0 : 201; }

// Green contexts: sets of SMs are bits; a stream holds its green context (0: all SMs). As in
// real drivers, only resources of one split can be joined, and only those of a whole device can be split.
#define SMS 132
typedef struct { int type; int split; unsigned char bits[88]; unsigned count, smallest, step, flags, rest[6]; void *next; } Resource;
typedef struct { unsigned count, step, preferred, flags, rest[12]; } Group;
typedef struct Green { Resource set; } Green;
static int splits, live_green, most_green = 1000, waits;
static void fill(Resource *r, int first, unsigned n, int split) {
    memset(r, 0, sizeof *r);
    r->type = n ? 1 : 0; r->split = split; r->count = n; r->smallest = r->step = 8;
    for (unsigned i = first; i < first + n; i++) r->bits[i / 8] |= 1 << i % 8;
}
R cuDeviceGetDevResource(int d, Resource *r, int type) { if (type != 1) return 914; fill(r, 0, SMS, 0); return 0; }
R cuCtxGetDevResource(void *c, Resource *r, int type) { return cuDeviceGetDevResource(0, r, type); }
R cuGreenCtxGetDevResource(Green *g, Resource *r, int type) { *r = g->set; return type == 1 ? 0 : 914; }
R cuDevSmResourceSplitByCount(Resource *out, unsigned *groups, const Resource *in, Resource *left, unsigned flags, unsigned n) {
    unsigned size = (n + 7) / 8 * 8, made = 0, most = number("FAKE_DRIVER_GREEN", SMS);
    if (in->split || in->count != SMS) return 915;
    for (splits++; made < *groups && (made + 1) * size <= most; made++) fill(&out[made], made * size, size, splits);
    *groups = made;
    fill(left, made * size, SMS - made * size, splits);
    return made ? 0 : 915;
}
R cuDevSmResourceSplit(Resource *out, unsigned groups, const Resource *in, Resource *left, unsigned flags, Group *g) {
    unsigned first = 0;
    if (in->split || in->count != SMS) return 915;
    splits++;
    for (unsigned i = 0; i < groups; first += g[i++].count) {
        if (g[i].count % 8 || first + g[i].count > number("FAKE_DRIVER_GREEN", SMS)) return 915;
        fill(&out[i], first, g[i].count, splits);
    }
    fill(left, first, SMS - first, splits);
    return 0;
}
R cuDevResourceGenerateDesc(Resource **desc, Resource *parts, unsigned n) {
    Resource *all = *desc = malloc(sizeof *all);
    *all = parts[0];
    for (unsigned i = 1; i < n; i++) {
        if (parts[i].split != parts[0].split) return 915;
        for (int j = 0; j < 88; j++) all->bits[j] |= parts[i].bits[j];
        all->count += parts[i].count;
    }
    return all->split && all->count ? 0 : 915;
}
R cuGreenCtxCreate(Green **g, Resource *desc, int d, unsigned flags) {
    if (live_green == most_green) return 2;
    *g = malloc(sizeof **g); (*g)->set = *desc; free(desc); live_green++;
    return flags == 1 ? 0 : 1;
}
R cuGreenCtxDestroy(Green *g) { free(g); live_green--; return 0; }
R cuCtxFromGreenCtx(void **c, Green *g) { *c = g; return 0; }
R cuGreenCtxStreamCreate(void **s, Green *g, unsigned flags, int p) { *s = malloc(8); *(Green **)*s = g; return flags == 1 ? 0 : 1; }
R cuStreamGetGreenCtx(void *s, Green **g) { *g = *(Green **)s; return 0; }
R cuStreamWaitEvent(void *s, void *e, unsigned f) { waits++; return 0; }
static unsigned char last_sms[17];

R cuStreamCreateWithPriority(void **s, unsigned f, int p) { *s = calloc(1, 8); return 0; }
R cuStreamCreate(void **s, unsigned f) { *s = calloc(1, 8); return 0; }
R cuStreamDestroy(void *s) { free(s); return 0; }
R cuStreamSynchronize(void *s) { return 0; }
R cuStreamGetCtx(void *s, void **c) { *c = *(void **)s ? *(void **)s : &context; return 0; }

// A capture keeps the launches of "scale" with their arguments; running the graph makes them.
struct Scale { const float *x; float *y; int n; float a; };
struct Graph { int count; struct Scale calls[64]; };
static struct Graph *captured;
static int live_graphs;
static void scale(struct Scale s) { for (int i = 0; i < s.n; i++) s.y[i] = s.a * s.x[i]; }
R cuStreamIsCapturing(void *s, int *v) { *v = captured != 0; return 0; }
R cuStreamBeginCapture(void *s, int mode) { if (captured || mode != 2) return 1; captured = calloc(1, sizeof *captured); return 0; }
R cuStreamEndCapture(void *s, void **g) { *g = captured; captured = 0; live_graphs++; return *g ? 0 : 1; }
R cuGraphInstantiateWithFlags(void **e, void *g, uint64_t f) {
    if (number("FAKE_DRIVER_GRAPHS", 99) <= live_graphs - 1) return 2;
    *e = memcpy(malloc(sizeof(struct Graph)), g, sizeof(struct Graph));
    live_graphs++;
    return 0;
}
R cuGraphUpload(void *e, void *s) { return 0; }
R cuGraphDestroy(void *g) { free(g); live_graphs--; return 0; }
R cuGraphExecDestroy(void *e) { free(e); live_graphs--; return 0; }
R cuGraphLaunch(void *e, void *s) {
    struct Graph *g = e;
    for (int i = 0; i < g->count; i++) scale(g->calls[i]);
    return current ? 0 : 201;
}
int fake_live_graphs(void) { return live_graphs; }

R cuEventCreate(void **e, unsigned f) { *e = malloc(8); return 0; }
R cuEventDestroy(void *e) { free(e); return 0; }
R cuEventRecord(void *e, void *s) { return 0; }
R cuEventSynchronize(void *e) { return 0; }
R cuEventQuery(void *e) { return 0; }
R cuEventElapsedTime(float *t, void *a, void *b) { *t = 1.25f; return 0; }

R cuLibraryLoadData(void **l, const void *code, void **a, void **b, unsigned n, void **c, void **d, unsigned m) {
    if (memcmp(code, "\177ELF", 4)) return 200;
    *l = malloc(8);
    return 0;
}
R cuLibraryUnload(void *l) { free(l); return 0; }
R cuLibraryGetKernel(void **k, void *l, const char *name) { *k = strdup(name); return 0; }
R cuKernelGetFunction(void **f, void *k) { *f = k; return current ? 0 : 201; }
R cuKernelGetLibrary(void **l, void *k) { *l = 0; return 0; }
R cuFuncSetAttribute(void *f, int a, int v) { if (a == 8) allowed_shared = v; return 0; }
R cuLaunchKernelEx(const Config *c, void *f, void **args, void **extra) {
    if (!current || !c->stream) return 201;
    if (c->shared > 48 * 1024 && c->shared > allowed_shared) return 1;
    launches++;
    Green *green = *(Green **)c->stream;
    if (green) memcpy(last_sms, green->set.bits, 17); else memset(last_sms, 255, 17);
    last_shared = c->shared;
    last_pdl = c->count == 1 && c->attrs[0].id == 6 && c->attrs[0].value[0] == 1;
    if (!strcmp(f, "scale")) {
        struct Scale s = {*(const float **)args[0], *(float **)args[1], *(int *)args[2], *(float *)args[3]};
        if (captured) captured->calls[captured->count++] = s;
        else scale(s);
    }
    return 0;
}

// What the test asks of this driver, through ctypes.
unsigned fake_launches(void) { return launches; }
unsigned fake_last_shared(void) { return last_shared; }
unsigned fake_last_pdl(void) { return last_pdl; }
unsigned char *fake_last_sms(void) { return last_sms; }
int fake_live_green(void) { return live_green; }
void fake_refuse_green_after(int n) { most_green = n; }
int fake_waits(void) { return waits; }
size_t fake_used(void) { return used; }
int fake_pinned(void) { return pinned; }
int fake_live_pinned(void) { return live_pinned; }

R cuGetProcAddress_v2(const char *name, void **f, int version, uint64_t flags, int *status) {
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    int hidden = !number("FAKE_DRIVER_GREEN", SMS) && (strstr(name, "Green") || strstr(name, "DevResource"));
    *f = self && !hidden ? dlsym(self, name) : 0;
    if (getenv("FAKE_DRIVER_TRACE") && !*f) fprintf(stderr, "missing %s\n", name);
    if (status) *status = *f ? 0 : 1;
    return 0;
}
R cuGetProcAddress(const char *name, void **f, int version, uint64_t flags) { return cuGetProcAddress_v2(name, f, version, flags, 0); }
