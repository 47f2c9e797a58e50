package testtools

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// FakeNVIDIAVersion is the driver's.
const FakeNVIDIAVersion = "570.86.15"

// FakeNVIDIA makes a folder in which NVIDIA's driver seems to be loaded and installed, with three GPUs, the last of them
// partitioned. As root it has device nodes, of numbers that harmless devices have: GPU 0 is the TUN device, GPU 1 is
// FUSE, GPU 2 is the kernel's log, the control node is the loop control device.
func FakeNVIDIA(t testing.TB, root string) {
	t.Helper()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  "+FakeNVIDIAVersion+
		"  Release Build  (dvs-builder@U16)  Thu Jan 23 22:50:36 UTC 2025\nGCC version:  gcc version 13.3.0\n")
	write("proc/devices", "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n234 nvidia-caps\n510 nvidia-uvm\n\n"+
		"Block devices:\n  7 loop\n234 not-a-char\n")
	for i, pci := range []string{"0000:17:00.0", "0000:65:00.0", "0000:ca:00.0"} {
		write("proc/driver/nvidia/gpus/"+pci+"/information", fmt.Sprintf("Model: \t\t NVIDIA Fake %d\nIRQ:   \t\t 100\n"+
			"GPU UUID: \t GPU-0000000%d-1111-2222-3333-444444444444\nBus Location: \t %s\nDevice Minor: \t %d\nGPU Excluded:\t No\n", i, i, pci, i))
		write("sys/bus/pci/devices/"+pci+"/numa_node", fmt.Sprintf("%d\n", i/2))
		write("sys/bus/pci/devices/"+pci+"/drm/card"+fmt.Sprint(i)+"/dev", "226:0\n")
	}
	capability := func(name string, minor int) {
		write("proc/driver/nvidia/capabilities/"+name, fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 292\nDeviceFileModify: 1\n", minor))
	}
	capability("mig/config", 1)
	capability("gpu2/mig/gi1/access", 21)
	capability("gpu2/mig/gi1/ci0/access", 22)
	capability("gpu2/mig/gi2/access", 30)
	capability("gpu2/mig/gi2/ci0/access", 31)

	lib := "usr/lib/x86_64-linux-gnu/"
	for name, soname := range map[string]string{
		"libcuda.so." + FakeNVIDIAVersion: "libcuda.so.1", "libnvidia-ml.so." + FakeNVIDIAVersion: "libnvidia-ml.so.1",
		"libnvidia-ptxjitcompiler.so." + FakeNVIDIAVersion: "libnvidia-ptxjitcompiler.so.1",
		"libnvidia-glcore.so." + FakeNVIDIAVersion:         "libnvidia-glcore.so." + FakeNVIDIAVersion,
		"libnvidia-encode.so." + FakeNVIDIAVersion:         "libnvidia-encode.so.1",
		"libcuda.so.535.104.05":                            "libcuda.so.1", // left by another version
		"libother.so.1":                                    "libother.so.1",
	} {
		write(lib+name, string(SharedObject(soname)))
	}
	link("libcuda.so.1", lib+"libcuda.so")
	link("libcuda.so."+FakeNVIDIAVersion, lib+"libcuda.so.1")
	write("usr/bin/nvidia-smi", "#!/bin/sh\necho fake smi\n")
	if err := os.Chmod(filepath.Join(root, "usr/bin/nvidia-smi"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("lib/firmware/nvidia/"+FakeNVIDIAVersion+"/gsp_ga10x.bin", "firmware")
	write("usr/share/vulkan/icd.d/nvidia_icd.json", "{}")
	write("dev/.keep", "")
	if os.Geteuid() == 0 {
		fakeNodes(t, filepath.Join(root, "dev"))
	}
}

func fakeNodes(t testing.TB, dev string) {
	t.Helper()
	for name, number := range map[string][2]uint32{
		"nvidia0": {10, 200}, "nvidia1": {10, 229}, "nvidia2": {1, 11}, "nvidiactl": {10, 237}, "dri/card0": {10, 235},
		"nvidia-caps/nvidia-cap21": {10, 144}, "nvidia-caps-imex-channels/channel0": {10, 183},
	} {
		MakeNode(t, filepath.Join(dev, name), number[0], number[1])
	}
}

// MakeNode makes a character device and the directories that it is in; as root.
func MakeNode(t testing.TB, path string, major, minor uint32) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := sys.Mknodat(int(d.Fd()), filepath.Base(path), sys.FileChar|0o666, major, minor); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
}
