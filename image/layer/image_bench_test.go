package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// BenchmarkUnpackImage: 250 MB of this machine's files as an image and as a directory. The time of "tar" is contained in
// that of the others.
func BenchmarkUnpackImage(b *testing.B) {
	needRoot(b)
	gnutar, err := exec.LookPath("tar")
	if err != nil {
		b.Skip("no tar in $PATH")
	}
	cmd := exec.Command(gnutar, "-C", "/", "-c", "--one-file-system", "-f", "-", "usr/share", "usr/bin", "usr/lib")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	stream, entries := firstEntries(b, out, 250<<20)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	image := func(o ImageOptions) func(b *testing.B, dir string) int64 {
		return func(b *testing.B, dir string) int64 {
			f, err := os.Create(filepath.Join(dir, "image"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			o.Frame = io.Discard
			res, err := UnpackImage(b.Context(), bytes.NewReader(stream), f, o)
			if err != nil {
				b.Fatal(err)
			}
			return res.DiskSize
		}
	}
	for _, c := range []struct {
		name string
		f    func(b *testing.B, dir string) int64
	}{
		{"tar", func(b *testing.B, _ string) int64 {
			r := tar.NewReader(bytes.NewReader(stream))
			for {
				if _, err := r.Next(); errors.Is(err, io.EOF) {
					return 0
				} else if err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"directory", func(b *testing.B, dir string) int64 {
			res, err := Unpack(b.Context(), bytes.NewReader(stream), rootFile(b, dir), Options{Frame: io.Discard})
			if err != nil {
				b.Fatal(err)
			}
			return res.DiskSize
		}},
		{"lz4", image(ImageOptions{})},
		{"plain", image(ImageOptions{Plain: true})},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			var cpu int64
			for b.Loop() {
				dir := b.TempDir()
				before := cpuTime(b)
				size := c.f(b, dir)
				cpu += cpuTime(b) - before
				b.StopTimer()
				b.ReportMetric(float64(size)/float64(len(stream)), "disk/tar")
				if err := os.RemoveAll(dir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu)/float64(b.N)/float64(entries), "cpu-ns/entry")
			b.ReportMetric(float64(cpu)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// firstEntries copies an archive up to a size.
func firstEntries(b *testing.B, r io.Reader, size int) ([]byte, int) {
	b.Helper()
	var out bytes.Buffer
	tr, tw := tar.NewReader(r), tar.NewWriter(&out)
	entries := 0
	for out.Len() < size {
		h, err := tr.Next()
		if err != nil {
			b.Skipf("tar of this machine's files: %v", err)
		}
		if h.Typeflag == tar.TypeLink {
			continue // its target may be missing
		}
		if err := tw.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(tw, tr); err != nil {
			b.Skipf("tar of this machine's files: %v", err)
		}
		entries++
	}
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes(), entries
}
