package launcher

import (
	"bytes"
	"errors"
	"testing"
	"testing/iotest"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// FuzzReadReports: whatever an init writes is an error or its last word, in whatever pieces it comes.
func FuzzReadReports(f *testing.F) {
	f.Add(report(initmsg.KindExecute, "true"))
	f.Add(append(report(initmsg.KindWarning, "w"), report(initmsg.KindError, "e")...))
	f.Fuzz(func(t *testing.T, data []byte) {
		warnings, name, err := readReports(bytes.NewReader(data), initmsg.KindExecute)
		again, other, err2 := readReports(iotest.OneByteReader(bytes.NewReader(data)), initmsg.KindExecute)
		if (err == nil) != (err2 == nil) || err == nil && (len(warnings) != len(again) || name != other) {
			t.Errorf("at once: %q, %q, %v; by bytes: %q, %q, %v", warnings, name, err, again, other, err2)
		}
		var r *initmsg.Report
		if err != nil && !errors.As(err, &r) {
			t.Errorf("error %T; want a report", err)
		}
	})
}
