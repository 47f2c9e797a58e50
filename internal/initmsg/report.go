package initmsg

import (
	"encoding/binary"
	"errors"
	"syscall"
)

// Kind says what a Report is.
type Kind byte

// Kinds of reports on FDSync. The end of file after KindExecute and without a
// KindError means that the workload's execve(2) succeeded.
const (
	// KindError ends the init: the workload was not executed.
	KindError Kind = 'E'
	// KindWarning is something that was left out, because the machine lacks
	// the right to do it; the start goes on.
	KindWarning Kind = 'W'
	// KindReady says that everything is set up and that the init now waits
	// at StartFile. Only sent when there is a StartFile.
	KindReady Kind = 'R'
	// KindExecute is the last word before the workload: without it, the end of
	// file means that the init was killed.
	KindExecute Kind = 'X'
)

// Report is one message from the init to its parent. As an error, it unwraps
// to its Errno where there is one.
type Report struct {
	Kind Kind
	// Stage names the step ("mount", "user", "exec", …).
	Stage string
	// Errno is the kernel's answer, or 0.
	Errno syscall.Errno
	// Text is the whole error: the operation, the path, the cause.
	Text string
}

// maxReport bounds one report: PIPE_BUF, so that a write to a pipe is atomic.
const maxReport = 4096

const reportHeader = 1 + 4 // kind, length of the rest

var errBadReport = errors.New("init report: malformed")

// Error is the stage and the text.
func (r *Report) Error() string { return r.Stage + ": " + r.Text }

// Unwrap is the errno, for errors.Is.
func (r *Report) Unwrap() error {
	if r.Errno == 0 {
		return nil
	}
	return r.Errno
}

// EncodeReport returns the report as one frame: kind, length (uint32, little
// endian), stage, NUL, errno (uint32, little endian), text. A text that would
// make it longer than 4096 bytes is cut.
func EncodeReport(r *Report) []byte {
	stage, text := r.Stage, r.Text
	if len(stage) > 64 {
		stage = stage[:64]
	}
	if most := maxReport - reportHeader - len(stage) - 1 - 4; len(text) > most {
		text = text[:most]
	}
	n := len(stage) + 1 + 4 + len(text)
	b := make([]byte, 0, reportHeader+n)
	b = append(b, byte(r.Kind))
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, stage...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.Errno))
	return append(b, text...)
}

// DecodeReport takes the first report off data. It returns nil and all of
// data where a frame is not complete yet, and an error where it can never be.
func DecodeReport(data []byte) (r *Report, rest []byte, err error) {
	if len(data) == 0 {
		return nil, data, nil
	}
	kind := Kind(data[0])
	if kind != KindError && kind != KindWarning && kind != KindReady && kind != KindExecute {
		return nil, data, errBadReport
	}
	if len(data) < reportHeader {
		return nil, data, nil
	}
	n := binary.LittleEndian.Uint32(data[1:])
	if n < 1+4 || n > maxReport-reportHeader {
		return nil, data, errBadReport
	}
	if uint32(len(data)-reportHeader) < n {
		return nil, data, nil
	}
	body, rest := data[reportHeader:reportHeader+n], data[reportHeader+n:]
	for i, c := range body {
		if c != 0 {
			continue
		}
		if len(body)-i-1 < 4 {
			break
		}
		return &Report{
			Kind:  kind,
			Stage: string(body[:i]),
			Errno: syscall.Errno(binary.LittleEndian.Uint32(body[i+1:])),
			Text:  string(body[i+5:]),
		}, rest, nil
	}
	return nil, data, errBadReport
}
