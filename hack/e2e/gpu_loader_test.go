package e2e

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

// cudaProgram uses the driver's API as a CUDA program does that was linked against nothing of it: it loads libcuda.so.1
// by its name alone, counts devices, and copies memory to the first and back.
const cudaProgram = `
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
typedef unsigned long long ptr;
#define F(name, ...) int (*name)(__VA_ARGS__) = dlsym(lib, #name); if (!name) { puts("no " #name); return 1; }
#define OK(call) { int r = call; if (r) { printf(#call ": %d\n", r); return 1; } }
int main(void) {
	void *lib = dlopen("libcuda.so.1", RTLD_NOW), *ctx;
	if (!lib) { puts(dlerror()); return 2; }
	F(cuInit, unsigned) F(cuDeviceGetCount, int *) F(cuDeviceGet, int *, int) F(cuDeviceGetName, char *, int, int)
	F(cuCtxCreate_v2, void **, unsigned, int) F(cuMemAlloc_v2, ptr *, size_t) F(cuMemcpyHtoD_v2, ptr, const void *, size_t)
	F(cuMemcpyDtoH_v2, void *, ptr, size_t) F(cuMemFree_v2, ptr)
	int count, device; char name[100], back[16] = ""; ptr p;
	OK(cuInit(0)) OK(cuDeviceGetCount(&count)) OK(cuDeviceGet(&device, 0)) OK(cuDeviceGetName(name, 100, device))
	OK(cuCtxCreate_v2(&ctx, 0, device)) OK(cuMemAlloc_v2(&p, 16)) OK(cuMemcpyHtoD_v2(p, "there and back", 15))
	OK(cuMemcpyDtoH_v2(back, p, 15)) OK(cuMemFree_v2(p))
	printf("%d device(s), %s: %s\n", count, name, back);
	return strcmp(back, "there and back") != 0;
}`

// fakeCUDA is a libcuda with one device, which is memory.
const fakeCUDA = `
#include <stdlib.h>
#include <string.h>
typedef unsigned long long ptr;
int cuInit(unsigned f) { return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "fake", n); return 0; }
int cuCtxCreate_v2(void **c, unsigned f, int d) { return 0; }
int cuMemAlloc_v2(ptr *p, size_t n) { *p = (ptr)malloc(n); return 0; }
int cuMemcpyHtoD_v2(ptr p, const void *s, size_t n) { memcpy((void *)p, s, n); return 0; }
int cuMemcpyDtoH_v2(void *d, ptr p, size_t n) { memcpy(d, (void *)p, n); return 0; }
int cuMemFree_v2(ptr p) { free((void *)p); return 0; }
`

func compile(t *testing.T, source, out string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skipf("needs gcc: %v", err)
	}
	cmd := exec.Command("gcc", append([]string{"-x", "c", "-", "-o", out}, args...)...)
	cmd.Stdin = strings.NewReader(source)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
}

// glibcImage has the CUDA program with this machine's C library, no cache of the loader, and empty files.
func (n *node) glibcImage(t *testing.T, files ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cuda")
	compile(t, cudaProgram, program, "-ldl")
	layer := []tar.Header{{Name: "lib64/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "lib/x86_64-linux-gnu/", Typeflag: tar.TypeDir, Mode: 0o755}}
	bodies := []string{"", ""}
	for name, from := range map[string]string{
		"bin/cuda": program, "lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2",
		"lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libdl.so.2": "/lib/x86_64-linux-gnu/libdl.so.2",
		"lib/x86_64-linux-gnu/libm.so.6": "/lib/x86_64-linux-gnu/libm.so.6", "lib/x86_64-linux-gnu/libpthread.so.0": "/lib/x86_64-linux-gnu/libpthread.so.0",
		"lib/x86_64-linux-gnu/librt.so.1": "/lib/x86_64-linux-gnu/librt.so.1",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Skipf("needs Debian's C library for x86-64: %v", err)
		}
		layer = append(layer, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755})
		bodies = append(bodies, string(data))
	}
	for _, name := range files {
		layer, bodies = append(layer, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}), append(bodies, "")
	}
	return n.pushImage(t, fmt.Sprintf("e2e/glibc%d", len(files)), ocispec.ImageConfig{}, registry.Entries(layer, bodies))
}

// TestGPULoader: a program of glibc finds the driver's libraries by name, without any variable.
func TestGPULoader(t *testing.T) {
	t.Parallel()
	n := gpuNode(t, nil)
	lib := filepath.Join(n.gpuRoot, "usr/lib/x86_64-linux-gnu/libcuda.so."+testtools.FakeNVIDIAVersion)
	compile(t, fakeCUDA, lib, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
	image := n.glibcImage(t)
	use := func(c *pb.ContainerConfig) { c.Image.Image = image }
	p := n.runPod(t)
	if got, want := p.output(t, "/bin/cuda", use, cdi("nvidia.com/gpu=0")), "1 device(s), fake: there and back\n"; got != want {
		t.Errorf("the program says %q; want %q", got, want)
	}
	if got := p.output(t, "/bin/cuda || echo exit $?", use); !strings.Contains(got, "libcuda.so.1: cannot open") {
		t.Errorf("without a GPU the program says %q; want that there is no libcuda", got)
	}
}

// TestRealGPU needs a GPU of NVIDIA's; hack/gpu-e2e.sh carries it to a machine that has one.
func TestRealGPU(t *testing.T) {
	if _, err := os.Stat("/proc/driver/nvidia/version"); err != nil {
		t.Skipf("needs NVIDIA's driver: %v", err)
	}
	n := newNode(t, map[string]string{"cdi_spec_dirs": "[]", "gpu_driver_root": quote(os.Getenv("GPU_DRIVER_ROOT"), "/")})
	image := n.glibcImage(t)
	use := func(c *pb.ContainerConfig) { c.Image.Image = image }
	p := n.runPod(t)
	t.Logf("gpu ls:\n%s", n.shim(t, "gpu", "ls", "--config", n.path("config.toml"), "--endpoint", n.socket()))
	t.Logf("nvidia-smi: %s", p.output(t, "/usr/bin/nvidia-smi -L", use, cdi("nvidia.com/gpu=0")))
	t.Logf("cuda: %s", p.output(t, "/bin/cuda", use, cdi("nvidia.com/gpu=0")))
	if got := p.output(t, "mknod /dev/x c 195 255; (: < /dev/x) 2>&1 || true", use); !strings.Contains(got, "not permitted") {
		t.Errorf("without a GPU, opening its control node says %q; want EPERM", got)
	}
}
