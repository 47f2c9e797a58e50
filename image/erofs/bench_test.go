package erofs_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/image/erofs"
)

// realFiles are files of this machine, up to limit bytes, like those of images.
func realFiles(tb testing.TB, limit int) [][]byte {
	tb.Helper()
	var files [][]byte
	for _, dir := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		total := 0
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			if total > limit/3 {
				return filepath.SkipAll
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return nil
			}
			total += len(b)
			files = append(files, b)
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	if len(files) == 0 {
		tb.Skip("no files in /usr")
	}
	return files
}

type discard struct{ n int64 }

func (d *discard) WriteAt(b []byte, off int64) (int, error) { d.n++; return len(b), nil }
func (d *discard) ReadAt(b []byte, off int64) (int, error)  { return len(b), nil }

// BenchmarkHurry compares the two ways of compressing.
func BenchmarkHurry(b *testing.B) {
	files := realFiles(b, 150<<20)
	total := int64(0)
	for _, f := range files {
		total += int64(len(f))
	}
	for _, hurry := range []bool{false, true} {
		b.Run(fmt.Sprint(hurry), func(b *testing.B) {
			var size int64
			start := cpuTime()
			for b.Loop() {
				size = writeAll(b, new(discard), erofs.Options{Compress: true, Hurry: func() bool { return hurry }}, files)
			}
			b.ReportMetric(float64(size)/float64(total), "ratio")
			b.ReportMetric(float64(total)*float64(b.N)/1e6/(cpuTime()-start).Seconds(), "cpu-MB/s")
		})
	}
}

// BenchmarkWriter writes real files, to nowhere and to a file. cpu-MB/s is by the CPU's time, with the kernel's.
func BenchmarkWriter(b *testing.B) {
	files := realFiles(b, 250<<20)
	total := int64(0)
	for _, f := range files {
		total += int64(len(f))
	}
	for _, m := range modes {
		for _, to := range []string{"nowhere", "file"} {
			b.Run(fmt.Sprintf("%s/%s", m.name, to), func(b *testing.B) {
				b.SetBytes(total)
				var size int64
				start := cpuTime()
				for b.Loop() {
					var f erofs.File = new(discard)
					if to == "file" {
						f = tempFile(b)
					}
					size = writeAll(b, f, m.o, files)
				}
				spent := cpuTime() - start
				b.ReportMetric(float64(size)/float64(total), "ratio")
				b.ReportMetric(float64(total)*float64(b.N)/1e6/spent.Seconds(), "cpu-MB/s")
				b.ReportMetric(float64(len(files)), "files")
			})
		}
	}
}

func writeAll(tb testing.TB, f erofs.File, o erofs.Options, files [][]byte) int64 {
	w, err := erofs.NewWriter(f, o)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Abort()
	root := &erofs.Dir{Attr: erofs.Attr{Mode: unix.S_IFDIR | 0o755}}
	r := new(bytes.Reader)
	for i, content := range files {
		r.Reset(content)
		n, err := w.WriteFile(context.Background(), erofs.Attr{Mode: unix.S_IFREG | 0o644}, int64(len(content)), r)
		if err != nil {
			tb.Fatal(err)
		}
		root.Entries = append(root.Entries, erofs.Entry{Name: fmt.Sprint(i), Inode: n})
	}
	n, err := w.Close(root)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
