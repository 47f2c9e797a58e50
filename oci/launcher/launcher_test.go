package launcher

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

func report(kind initmsg.Kind, text string) []byte {
	return initmsg.EncodeReport(&initmsg.Report{Kind: kind, Stage: "stage", Errno: syscall.ENOENT, Text: text})
}

func TestReadReports(t *testing.T) {
	execute, ready := report(initmsg.KindExecute, ""), report(initmsg.KindReady, "")
	warning, failure := report(initmsg.KindWarning, strings.Repeat("w", 3000)), report(initmsg.KindError, "e")
	tests := []struct {
		name     string
		data     []byte
		until    initmsg.Kind
		warnings int
		want     string // of the error
	}{
		{"executed", execute, initmsg.KindExecute, 0, ""},
		{"warnings", slices.Concat(warning, warning, execute), initmsg.KindExecute, 2, ""},
		{"killed", nil, initmsg.KindExecute, 0, "init: it was killed before the workload was executed"},
		{"failed", slices.Concat(warning, failure), initmsg.KindExecute, 0, "stage: e"},
		{"execve failed", slices.Concat(execute, failure), initmsg.KindExecute, 0, "stage: e"},
		{"cut", execute[:len(execute)-1], initmsg.KindExecute, 0, "init: its report ends early"},
		{"garbage", []byte("garbage"), initmsg.KindExecute, 0, "init: init report: malformed"},
		{"ready", slices.Concat(warning, ready, failure), initmsg.KindReady, 1, ""},
		{"not ready", execute, initmsg.KindReady, 0, "init: it was killed before the workload was executed"},
		{"endless", bytes.Repeat(warning, 30), initmsg.KindExecute, 0, "init: it reports more than 65536 bytes"},
	}
	for _, tt := range tests {
		for way, r := range map[string]io.Reader{
			"whole": bytes.NewReader(tt.data), "by bytes": iotest.OneByteReader(bytes.NewReader(tt.data)),
		} {
			warnings, err := ReadReports(r, tt.until)
			var rep *initmsg.Report
			switch {
			case tt.want == "" && err != nil, tt.want != "" && (err == nil || err.Error() != tt.want):
				t.Errorf("%s, %s: error %v; want %q", tt.name, way, err, tt.want)
			case err != nil && !errors.As(err, &rep):
				t.Errorf("%s, %s: error %T; want a report", tt.name, way, err)
			case tt.want == "" && len(warnings) != tt.warnings:
				t.Errorf("%s, %s: %d warnings; want %d", tt.name, way, len(warnings), tt.warnings)
			}
		}
	}
	if _, err := ReadReports(bytes.NewReader(failure), initmsg.KindExecute); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("error %v; want it to match the init's errno", err)
	}
}
