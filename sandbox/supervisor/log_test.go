package supervisor

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

func openTestLog(t *testing.T) (*logFile, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l := &logFile{file: f}
	t.Cleanup(l.close)
	return l, path
}

var linePattern = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)$`)

// content returns tag and content of each line of a log, "F:hello".
func content(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		m := linePattern.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Fatalf("log line %q is not in the CRI's format", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, strings.Fields(line)[0]); err != nil {
			t.Fatal(err)
		}
		all = append(all, m[2]+":"+m[3])
	}
	return all
}

func TestLineWriter(t *testing.T) {
	for name, c := range map[string]struct {
		chunks, want []string
	}{
		"lines":                  {[]string{"a\nb\n"}, []string{"F:a", "F:b"}},
		"line over two chunks":   {[]string{"hel", "lo\n"}, []string{"F:hello"}},
		"empty lines":            {[]string{"\n\n"}, []string{"F:", "F:"}},
		"no newline at the end":  {[]string{"a\nb"}, []string{"F:a", "F:b"}},
		"exactly full":           {[]string{"12345678\n"}, []string{"F:12345678"}},
		"one too many":           {[]string{"123456789\n"}, []string{"P:12345678", "F:9"}},
		"full before newline":    {[]string{"12345678", "\n"}, []string{"P:12345678", "F:"}},
		"long over chunks":       {[]string{"12345", "67890", "abcdefgh\n"}, []string{"P:12345678", "P:90abcdef", "F:gh"}},
		"long without a newline": {[]string{"1234567890"}, []string{"P:12345678", "F:90"}},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := openTestLog(t)
			w := &lineWriter{log: l, stream: streamStdout, maxLine: 8}
			var scratch []byte
			for _, chunk := range c.chunks {
				scratch = w.write([]byte(chunk), scratch)
			}
			w.finish()
			if got := content(t, path); strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("log = %q; want %q", got, c.want)
			}
		})
	}
}

func FuzzLineWriter(f *testing.F) {
	f.Add([]byte("a\nb"), 3)
	f.Add([]byte("\n\n\x00long line without end"), 1)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		if len(data) > 4096 {
			return
		}
		l, path := openTestLog(t)
		w := &lineWriter{log: l, stream: streamStderr, maxLine: 16}
		cut = max(1, min(cut, len(data)))
		for rest := data; len(rest) > 0; {
			n := min(cut, len(rest))
			w.write(rest[:n], nil)
			rest = rest[n:]
		}
		w.finish()
		log, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var back bytes.Buffer
		for len(log) > 0 {
			end := bytes.IndexByte(log, '\n')
			line := log[:end]
			log = log[end+1:]
			parts := bytes.SplitN(line, []byte(" "), 4)
			if len(parts) != 4 || len(parts[3]) > 16 {
				t.Fatalf("line %q", line)
			}
			back.Write(parts[3])
			if string(parts[2]) == "F" {
				back.WriteByte('\n')
			}
		}
		want := data
		if len(data) > 0 && data[len(data)-1] != '\n' {
			want = append(bytes.Clone(data), '\n')
		}
		if !bytes.Equal(back.Bytes(), want) {
			t.Errorf("log gives back %q; want %q", back.Bytes(), want)
		}
	})
}

// A log that cannot be written does not stop the stream, and the gap is told afterwards.
func TestLogFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("no /dev/full: %v", err)
	}
	l := &logFile{file: full}
	w := &lineWriter{log: l, stream: streamStdout, maxLine: 100}
	w.write([]byte("lost\nlost too\n"), nil)
	good, path := openTestLog(t)
	if err := l.reopen(good.file); err != nil {
		t.Fatal(err)
	}
	good.file = nil
	w.write([]byte("kept\n"), nil)
	l.close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(data); !strings.Contains(s, "bytes of log lost") || !strings.HasSuffix(s, "stdout F kept\n") {
		t.Errorf("log = %q; want the gap, then the line", s)
	}
}

// No line is lost or torn while the log is reopened again and again.
func TestReopenWhileWriting(t *testing.T) {
	dir := t.TempDir()
	open := func(i int) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, string(rune('a'+i))), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	l := &logFile{file: open(0)}
	r, w, err := sys.Pipe(false)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyLines(r, &lineWriter{log: l, stream: streamStdout, maxLine: 1000}, new(fanout))
	}()
	const lines = 20000
	go func() {
		defer w.Close()
		for i := range lines {
			w.WriteString(strings.Repeat("x", i%50) + "\n")
		}
	}()
	for i := 1; i < 20; i++ {
		if err := l.reopen(open(i)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	<-done
	l.close()
	n := 0
	for i := range 20 {
		n += len(content(t, filepath.Join(dir, string(rune('a'+i)))))
	}
	if n != lines {
		t.Errorf("%d lines in all logs; want %d", n, lines)
	}
}

// A client that does not read misses output and is told how much; the log and other clients do not wait for it.
func TestAttachSlowClient(t *testing.T) {
	fan := new(fanout)
	attach := func() *os.File {
		r, w, err := sys.Pipe(false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if _, err := fan.attach(w, nil, nil); err != nil {
			t.Fatal(err)
		}
		return r
	}
	stalled, good := attach(), attach()
	data := bytes.Repeat([]byte("y"), 4096)
	const rounds = 64
	buf := make([]byte, len(data))
	for range rounds {
		fan.output(streamStdout, data)
		if _, err := io.ReadFull(good, buf); err != nil || !bytes.Equal(buf, data) {
			t.Fatalf("the client that reads: %v; want all that was written", err)
		}
	}
	held := make([]byte, rounds*len(data))
	n, err := stalled.Read(held)
	if err != nil || n == 0 || n >= len(held) {
		t.Fatalf("the client that stalls has %d bytes, %v; want some", n, err)
	}
	fan.output(streamStdout, []byte("again\n"))
	fan.end()
	rest, err := io.ReadAll(stalled)
	if want := fmt.Sprintf("[cri-shim: %d bytes of output skipped: this client does not keep up]\r\nagain\n", len(held)-n); err != nil || !strings.HasSuffix(string(rest), want) {
		t.Errorf("after the stall it reads %q, %v; want %q", rest, err, want)
	}
}
