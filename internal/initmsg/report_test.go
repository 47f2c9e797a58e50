package initmsg

import (
	"bytes"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReportRoundTrip(t *testing.T) {
	want := []*Report{
		{Kind: KindWarning, Stage: "oom", Errno: syscall.EACCES, Text: "oom_score_adj -998: permission denied"},
		{Kind: KindReady},
		{Kind: KindError, Stage: "exec", Text: "with a \x00 in it"},
	}
	var data []byte
	for _, r := range want {
		data = append(data, EncodeReport(r)...)
	}
	var got []*Report
	for len(data) > 0 {
		for n := range data { // a frame that is not complete is not an error
			if _, _, err := DecodeReport(data[:n]); err != nil {
				t.Fatalf("DecodeReport of %d bytes = %v; want nil", n, err)
			}
			if n >= reportHeader+5 {
				break
			}
		}
		r, rest, err := DecodeReport(data)
		if err != nil || r == nil {
			t.Fatalf("DecodeReport(%q) = %v, %v", data, r, err)
		}
		got, data = append(got, r), rest
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if !errors.Is(got[0], syscall.EACCES) {
		t.Error("errors.Is(report, EACCES) = false; want true")
	}
}

func TestReportIsBounded(t *testing.T) {
	b := EncodeReport(&Report{Kind: KindError, Stage: strings.Repeat("s", 100), Text: strings.Repeat("x", 9000)})
	if len(b) != maxReport {
		t.Errorf("len(EncodeReport(long)) = %d; want %d", len(b), maxReport)
	}
	if r, rest, err := DecodeReport(b); err != nil || r == nil || len(rest) != 0 {
		t.Errorf("DecodeReport(long) = %v, %d left, %v", r, len(rest), err)
	}
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(EncodeReport(&Report{Kind: KindError, Stage: "mount", Errno: syscall.EINVAL, Text: "bad"}))
	f.Add([]byte("Z"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, rest, err := DecodeReport(data)
		if err != nil || r == nil {
			if !bytes.Equal(rest, data) {
				t.Fatal("bytes were taken off without a report")
			}
			return
		}
		if len(rest) >= len(data) {
			t.Fatal("a report took no bytes")
		}
	})
}
