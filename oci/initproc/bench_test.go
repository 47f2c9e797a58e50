package initproc_test

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// kubelet makes a message like a Kubernetes container's: 20 mounts, 12 masked paths, a user, capabilities, a filter.
func kubelet(b *box) {
	for i := range 14 {
		dir := b.t.TempDir()
		b.m.Mounts = append(b.m.Mounts, initmsg.Mount{
			Source: dir, File: initmsg.NoFile, Target: "/volumes/" + itoa(i), Recursive: true,
			AttrSet: nosuid | nodev, Propagation: unix.MS_PRIVATE | unix.MS_REC,
		})
	}
	oom := int32(1000)
	p := &b.m.Process
	p.OOMScoreAdj, p.NoNewPrivs, p.Seccomp = &oom, true, allowAll()
	p.UID, p.GID, p.Groups = 1000, 1000, []uint32{1000, 2000}
}

// BenchmarkContainer is from fork to the end of /bin/true in a container.
func BenchmarkContainer(b *testing.B) {
	x := newBox(b, "")
	kubelet(x)
	x.m.Process.Args = []string{"/bin/true"}
	fastest(b, func() {
		if r := x.run(); r.failure != nil || r.code != 0 {
			b.Fatal(r)
		}
	})
}

// fastest reports the shortest round too: on a busy machine the mean says little.
func fastest(b *testing.B, round func()) {
	least := time.Hour
	for b.Loop() {
		start := time.Now()
		round()
		least = min(least, time.Since(start))
	}
	b.ReportMetric(float64(least.Microseconds())/1000, "min-ms")
}

// BenchmarkExec is from fork to execve: without the workload and the end of its namespaces.
func BenchmarkExec(b *testing.B) {
	x := newBox(b, "")
	kubelet(x)
	x.m.Process.Args = []string{"/bin/true"}
	least := time.Hour
	for b.Loop() {
		start := time.Now()
		c := x.start()
		if r := c.readReports(); len(r) != 0 {
			b.Fatal(r[0])
		}
		least = min(least, time.Since(start))
		c.cmd.Wait()
	}
	b.ReportMetric(float64(least.Microseconds())/1000, "min-ms")
}

// BenchmarkNamespaces is the kernel's share: busybox true in the same new namespaces.
func BenchmarkNamespaces(b *testing.B) {
	needRoot(b)
	benchCommand(b, containerFlags, busybox, "true")
}

// BenchmarkGo is Go's share: the init itself, which ends when it finds no message.
func BenchmarkGo(b *testing.B) {
	needRoot(b)
	benchCommand(b, 0, initBinary(b))
}

// BenchmarkTrue is plain fork and exec.
func BenchmarkTrue(b *testing.B) {
	needRoot(b)
	benchCommand(b, 0, busybox, "true")
}

func benchCommand(b *testing.B, flags uintptr, args ...string) {
	fastest(b, func() {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = initmsg.Env()
		cmd.SysProcAttr = sysProcAttr(flags)
		if err := cmd.Run(); err != nil && args[0] == busybox {
			b.Fatal(err)
		}
	})
}

// BenchmarkStages is where the time goes, the same container with parts left out.
func BenchmarkStages(b *testing.B) {
	for _, c := range []struct {
		name string
		drop func(*initmsg.Message)
	}{
		{"all", func(*initmsg.Message) {}},
		{"no binds", func(m *initmsg.Message) { m.Mounts = m.Mounts[:6] }},
		{"no masks", func(m *initmsg.Message) { m.Masked, m.Readonly = nil, nil }},
		{"no mounts", func(m *initmsg.Message) {
			m.Masked, m.Readonly, m.Mounts, m.Devices, m.Symlinks = nil, nil, nil, nil, nil
		}},
		{"no procfs", func(m *initmsg.Message) { m.Process.OOMScoreAdj = nil }},
		{"no seccomp", func(m *initmsg.Message) { m.Process.Seccomp = nil }},
		{"no root", func(m *initmsg.Message) {
			m.Process.Seccomp, m.Process.OOMScoreAdj = nil, nil
			m.Masked, m.Readonly, m.Mounts, m.Devices, m.Symlinks, m.Root = nil, nil, nil, nil, nil, nil
			m.Process.Args = []string{busybox, "true"}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			x := newBox(b, "")
			kubelet(x)
			x.m.Process.Args = []string{"/bin/true"}
			c.drop(x.m)
			fastest(b, func() {
				if r := x.run(); r.failure != nil || r.code != 0 {
					b.Fatal(r)
				}
			})
		})
	}
}
