package e2e

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

// cudaProgram uses the driver's API as a CUDA program does that was linked against nothing of it: it loads libcuda.so.1
// by its name alone, asks for the device, and takes memory there, on which a kernel works that the driver compiles from PTX.
const cudaProgram = `
#include <dlfcn.h>
#include <stdio.h>
typedef unsigned long long ptr;
#define F(name, ...) int (*name)(__VA_ARGS__) = dlsym(lib, #name); if (!name) { puts("no " #name); return 1; }
#define OK(call) { int r = call; if (r) { printf(#call ": error %d\n", r); return 1; } }
static const char kernel[] =
	".version 6.4\n.target sm_75\n.address_size 64\n"
	".visible .entry step(.param .u64 at)\n{\n"
	".reg .b32 %r<5>;\n.reg .b64 %rd<3>;\n"
	"ld.param.u64 %rd1, [at];\ncvta.to.global.u64 %rd1, %rd1;\n"
	"mov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmad.lo.s32 %r1, %r2, %r3, %r1;\n"
	"mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd1, %rd1, %rd2;\n"
	"ld.global.u32 %r4, [%rd1];\nmad.lo.s32 %r4, %r4, 2, 1;\nst.global.u32 [%rd1], %r4;\nret;\n}\n";
enum { BLOCKS = 4, THREADS = 256, N = BLOCKS * THREADS };
int main(void) {
	void *lib = dlopen("libcuda.so.1", RTLD_NOW), *ctx, *module, *function;
	if (!lib) { puts(dlerror()); return 2; }
	F(cuInit, unsigned) F(cuDriverGetVersion, int *) F(cuDeviceGetCount, int *) F(cuDeviceGet, int *, int)
	F(cuDeviceGetName, char *, int, int) F(cuDeviceTotalMem_v2, size_t *, int)
	F(cuDevicePrimaryCtxRetain, void **, int) F(cuCtxSetCurrent, void *) F(cuCtxSynchronize, void)
	F(cuMemAlloc_v2, ptr *, size_t) F(cuMemcpyHtoD_v2, ptr, const void *, size_t)
	F(cuMemcpyDtoH_v2, void *, ptr, size_t) F(cuMemFree_v2, ptr)
	F(cuModuleLoadData, void **, const void *) F(cuModuleGetFunction, void **, void *, const char *)
	F(cuLaunchKernel, void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)
	int count, device, version, i; char name[100]; size_t total; ptr p; unsigned data[N];
	OK(cuInit(0)) OK(cuDriverGetVersion(&version)) OK(cuDeviceGetCount(&count)) OK(cuDeviceGet(&device, 0))
	OK(cuDeviceGetName(name, 100, device)) OK(cuDeviceTotalMem_v2(&total, device))
	OK(cuDevicePrimaryCtxRetain(&ctx, device)) OK(cuCtxSetCurrent(ctx))
	OK(cuMemAlloc_v2(&p, sizeof data))
	for (i = 0; i < N; i++) data[i] = i;
	OK(cuMemcpyHtoD_v2(p, data, sizeof data))
	OK(cuModuleLoadData(&module, kernel)) OK(cuModuleGetFunction(&function, module, "step"))
	void *args[] = {&p};
	OK(cuLaunchKernel(function, BLOCKS, 1, 1, THREADS, 1, 1, 0, 0, args, 0)) OK(cuCtxSynchronize())
	OK(cuMemcpyDtoH_v2(data, p, sizeof data)) OK(cuMemFree_v2(p))
	for (i = 0; i < N; i++) if (data[i] != 2 * i + 1) { printf("data[%d] = %u\n", i, data[i]); return 1; }
	printf("%d device(s), %s, %zu MiB, API %d: alloc, copy and kernel right\n", count, name, total >> 20, version);
	return 0;
}`

// cudaSays is what the program says of fakeCUDA.
const cudaSays = "1 device(s), fake, 64 MiB, API 12080: alloc, copy and kernel right\n"

// fakeCUDA is a libcuda with one device, which is memory, and whose one kernel is the program's.
const fakeCUDA = `
#include <stdlib.h>
#include <string.h>
typedef unsigned long long ptr;
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "fake", n); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = 64 << 20; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = malloc(1); return 0; }
int cuCtxSetCurrent(void *c) { return c == 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemAlloc_v2(ptr *p, size_t n) { *p = (ptr)malloc(n); return 0; }
int cuMemcpyHtoD_v2(ptr p, const void *s, size_t n) { memcpy((void *)p, s, n); return 0; }
int cuMemcpyDtoH_v2(void *d, ptr p, size_t n) { memcpy(d, (void *)p, n); return 0; }
int cuMemFree_v2(ptr p) { free((void *)p); return 0; }
int cuModuleLoadData(void **m, const void *text) { *m = (void *)text; return strstr(text, ".entry step") == 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = m; return strcmp(name, "step") != 0; }
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned s, void *st, void **args, void **e) {
	unsigned *p = *(unsigned **)args[0];
	for (unsigned i = 0; i < x * bx; i++) p[i] = 2 * p[i] + 1;
	return 0;
}
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

// realRootEnv names a folder that hack/gpu-e2e.sh has packed where it was built: the program and a C library, for a machine
// that has neither a compiler nor Debian's library.
const realRootEnv = "GPU_E2E_ROOT"

// glibcFiles are the files of an image with the program, by their paths in it and on this machine.
func glibcFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{"bin/cuda": "", "lib64/ld-linux-x86-64.so.2": ""}
	for _, name := range []string{"libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"} {
		files["lib/x86_64-linux-gnu/"+name] = ""
	}
	root := os.Getenv(realRootEnv)
	for name := range files {
		files[name] = filepath.Join("/", root, name)
	}
	if root == "" {
		files["bin/cuda"] = filepath.Join(t.TempDir(), "cuda")
		compile(t, cudaProgram, files["bin/cuda"], "-ldl")
	}
	return files
}

// glibcImage has the CUDA program with this machine's C library, no cache of the loader, and empty files.
func (n *node) glibcImage(t *testing.T, empty ...string) string {
	t.Helper()
	layer := []tar.Header{{Name: "lib64/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "lib/x86_64-linux-gnu/", Typeflag: tar.TypeDir, Mode: 0o755}}
	bodies := []string{"", ""}
	for name, from := range glibcFiles(t) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Skipf("needs Debian's C library for x86-64: %v", err)
		}
		layer = append(layer, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755})
		bodies = append(bodies, string(data))
	}
	for _, name := range empty {
		layer, bodies = append(layer, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}), append(bodies, "")
	}
	return n.pushImage(t, fmt.Sprintf("e2e/glibc%d", len(empty)), ocispec.ImageConfig{}, registry.Entries(layer, bodies))
}

// TestPackGPU writes what a machine with a GPU needs for TestRealGPU into the folder $GPU_E2E_PACK.
func TestPackGPU(t *testing.T) {
	dir := os.Getenv("GPU_E2E_PACK")
	if dir == "" {
		t.Skip("needs GPU_E2E_PACK: for hack/gpu-e2e.sh")
	}
	for name, from := range glibcFiles(t) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
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
	if got, want := p.output(t, "/bin/cuda", use, cdi("nvidia.com/gpu=0")), cudaSays; got != want {
		t.Errorf("the program says %q; want %q", got, want)
	}
	if got := p.output(t, "/bin/cuda || echo exit $?", use); !strings.Contains(got, "libcuda.so.1: cannot open") {
		t.Errorf("without a GPU the program says %q; want that there is no libcuda", got)
	}
}

// TestRealGPU needs a GPU of NVIDIA's; hack/gpu-e2e.sh carries it to a machine that has one, and documents what it prints.
// $GPU_E2E_FAKE lets it run on a fake driver, to test itself.
func TestRealGPU(t *testing.T) {
	config := map[string]string{"cdi_spec_dirs": "[]", "gpu_driver_root": quote("/", os.Getenv("GPU_DRIVER_ROOT"))}
	say := func(what, text string) {
		for l := range strings.Lines(strings.TrimSpace(text) + "\n") {
			fmt.Print("gpu-e2e: " + what + ": " + l)
		}
	}
	denied := "195 255" // nvidiactl
	var n *node
	if os.Getenv("GPU_E2E_FAKE") != "" {
		n, denied = gpuNode(t, nil), "10 237"
		compile(t, fakeCUDA, filepath.Join(n.gpuRoot, "usr/lib/x86_64-linux-gnu/libcuda.so."+testtools.FakeNVIDIAVersion), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
	} else {
		if _, err := os.Stat("/proc/driver/nvidia/version"); err != nil {
			t.Skipf("needs NVIDIA's driver: %v", err)
		}
		n = newNode(t, config)
	}
	image := n.glibcImage(t)
	glibc := func(c *pb.ContainerConfig) { c.Image.Image = image }
	p := n.runPod(t, hostNetwork) // without plugins, and without what they need of the machine
	say("gpu ls", n.shim(t, "gpu", "ls", "--config", n.path("config.toml"), "--endpoint", n.socket()))
	out, err := exec.Command(n.program, "gpu", "check", "--config", n.path("config.toml")).CombinedOutput()
	say("gpu check", string(out))
	if err != nil {
		say("gpu check", err.Error()) // a finding, no failure: what does not work shows below
	}
	gpu := cdi("nvidia.com/gpu=0")
	say("nvidia-smi", p.output(t, "/usr/bin/nvidia-smi -L", glibc, gpu))
	c := p.sleeping(t, glibc, gpu)
	cuda := func(when string) {
		t.Helper()
		got := c.exec(t, "/bin/cuda || echo exit $?")
		say("cuda, "+when, got)
		if !strings.HasSuffix(got, "alloc, copy and kernel right\n") {
			t.Errorf("%s: the program says %q", when, got)
		}
	}
	cuda("exec")
	if _, err := n.UpdateContainerResources(ctx(t), &pb.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &pb.LinuxContainerResources{CpuShares: 512}}); err != nil {
		t.Errorf("UpdateContainerResources: %v", err)
	}
	cuda("after an update")
	if _, err := os.Stat("/run/systemd/private"); err == nil {
		systemctl(t, "daemon-reload")
		cuda("after daemon-reload")
	}
	n.restart(t, syscall.SIGKILL)
	cuda("after the daemon was killed")
	got := p.output(t, "mknod /dev/x c "+denied+"; (: < /dev/x) 2>&1 || true; ls /dev | grep -c nvidia; true", glibc)
	say("without a GPU", got)
	if !strings.Contains(got, "not permitted") || !strings.HasSuffix(got, "\n0\n") {
		t.Errorf("without a GPU, opening its control node says %q; want EPERM, and no node", got)
	}
	plain, with := p.fastestStarts(t, []edit{glibc}, []edit{glibc, gpu})
	say("start", fmt.Sprintf("%v without a GPU, %v with one; the shortest of thirty", plain, with))
}

// fastestStarts are the shortest times that CreateContainer and StartContainer take together, of thirty each, by turns.
func (p *pod) fastestStarts(t *testing.T, a, b []edit) (_, _ time.Duration) {
	t.Helper()
	fastest := [2]time.Duration{time.Hour, time.Hour}
	for range 30 {
		for i, edits := range [][]edit{a, b} {
			begin := time.Now()
			c := p.sleeping(t, edits...)
			fastest[i] = min(fastest[i], time.Since(begin))
			if _, err := c.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return fastest[0].Round(10 * time.Microsecond), fastest[1].Round(10 * time.Microsecond)
}
