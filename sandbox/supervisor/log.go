package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// defaultMaxLine is where a line is split into partial ones when the daemon does not say.
const defaultMaxLine = 16 << 10

// logFile writes lines in the CRI's log format: RFC 3339 time with nanoseconds, stream,
// F (full) or P (partial), content. Every chunk of a stream is one write(2) with O_APPEND.
// It never blocks the workload over a full disk: what cannot be written is counted, and
// the gap is said in the log as soon as it can be written again.
type logFile struct {
	mu     sync.Mutex
	file   *os.File
	lost   int
	closed bool
}

func (l *logFile) write(lines []byte) {
	if len(lines) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	if l.lost > 0 && !l.reportGap() {
		l.lost += len(lines)
		return
	}
	if n, err := l.file.Write(lines); err != nil {
		l.lost += len(lines) - n
	}
}

// reportGap says how much was lost; a half-written line before it is ended first.
func (l *logFile) reportGap() bool {
	note := fmt.Appendf(nil, "\n%s stderr F [cri-shim: %d bytes of log lost: the log could not be written]\n",
		time.Now().UTC().Format(logTime), l.lost)
	if _, err := l.file.Write(note); err != nil {
		return false
	}
	l.lost = 0
	return true
}

// reopen goes on in another file.
func (l *logFile) reopen(f *os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed { // the process has ended meanwhile
		return f.Close()
	}
	old := l.file
	l.file = f
	return old.Close()
}

func (l *logFile) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

// logTime is RFC 3339 with all nine digits, so that lines sort.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// lineWriter turns one stream's bytes into log lines. It keeps what has no
// newline yet, at most maxLine bytes.
type lineWriter struct {
	log     *logFile
	stream  string
	maxLine int
	pending []byte
	partial bool // the last line written is to be continued
}

func (w *lineWriter) write(chunk []byte, scratch []byte) []byte {
	out := scratch[:0]
	stamp := time.Now().UTC().AppendFormat(make([]byte, 0, 40), logTime)
	for len(chunk) > 0 {
		i := bytes.IndexByte(chunk, '\n')
		room := w.maxLine - len(w.pending)
		switch {
		case i >= 0 && i <= room:
			out = w.line(out, stamp, 'F', chunk[:i])
			chunk = chunk[i+1:]
		case len(chunk) >= room:
			out = w.line(out, stamp, 'P', chunk[:room])
			chunk = chunk[room:]
		default:
			w.pending = append(w.pending, chunk...)
			chunk = nil
		}
	}
	w.log.write(out)
	return out
}

func (w *lineWriter) line(out, stamp []byte, tag byte, rest []byte) []byte {
	w.partial = tag == 'P'
	out = append(out, stamp...)
	out = append(out, ' ')
	out = append(out, w.stream...)
	out = append(out, ' ', tag, ' ')
	out = append(out, w.pending...)
	out = append(out, rest...)
	if w.pending != nil {
		if cap(w.pending) > 1024 {
			w.pending = nil // most lines are short: do not keep what a long one took
		} else {
			w.pending = w.pending[:0]
		}
	}
	return append(out, '\n')
}

// finish ends a line that has no newline at the stream's end.
func (w *lineWriter) finish() {
	if len(w.pending) == 0 && !w.partial {
		return
	}
	stamp := time.Now().UTC().AppendFormat(nil, logTime)
	w.log.write(w.line(nil, stamp, 'F', nil))
}

// buffers are shared by all streams: one is taken when data is there, not while waiting for it.
var buffers = sync.Pool{New: func() any { return &buffer{in: make([]byte, 16<<10), out: make([]byte, 0, 20<<10)} }}

type buffer struct{ in, out []byte }

func takeBuffer() (*buffer, []byte) {
	b := buffers.Get().(*buffer)
	return b, b.in
}

// copyLines reads r to its end. A buffer is only held while there is data to be read.
func copyLines(r *os.File, w *lineWriter, fan *fanout) {
	defer w.finish()
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for {
		n, b, err := sys.ReadReady(raw, takeBuffer)
		if n > 0 {
			fan.output(w.stream, b.in[:n])
			b.out = w.write(b.in[:n], b.out)
		}
		if b != nil {
			buffers.Put(b)
		}
		if n == 0 || err != nil {
			return
		}
	}
}
