package api

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFrameRoundTrip(t *testing.T) {
	want := Request{Seq: 7, Op: OpLaunch, ID: "c1", Roles: []Role{RoleMessage, RoleFile},
		Launch: &Launch{Pod: "p", CloneFlags: 1 << 29, Logged: true, KillGroup: []string{"/a"}}}
	frame, err := Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := Decode(frame, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFrameRefuses(t *testing.T) {
	big := bytes.Repeat([]byte{' '}, MaxFrame+1)
	copy(big, []byte{Version, '{', '}'}) // and spaces: nothing else is wrong with it
	for name, frame := range map[string][]byte{
		"empty": {}, "version": {Version + 1, '{', '}'}, "no JSON": {Version, '{'}, "too large": big,
	} {
		var r Request
		if err := Decode(frame, &r); !errors.Is(err, ErrFrame) {
			t.Errorf("Decode(%s) = %v; want ErrFrame", name, err)
		}
	}
	if _, err := Encode(Reply{Err: &Error{Text: string(big)}}); !errors.Is(err, ErrFrame) {
		t.Errorf("Encode of a large reply = %v; want ErrFrame", err)
	}
}

// A frame of a newer release has fields that this one does not know.
func TestFrameUnknownFields(t *testing.T) {
	var r Reply
	frame := append([]byte{Version}, `{"seq":1,"pid":5,"new_field":{"a":1},"exit":{"id":"x","later":true,"at":"2026-01-02T03:04:05Z"}}`...)
	if err := Decode(frame, &r); err != nil {
		t.Fatal(err)
	}
	want := Reply{Seq: 1, PID: 5, Exit: &Exit{ID: "x", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range []any{Request{Seq: 1, Op: OpHello}, Reply{Exit: &Exit{ID: "a"}}} {
		frame, err := Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var q Request
		if err := Decode(frame, &q); err != nil && !errors.Is(err, ErrFrame) {
			t.Errorf("Decode = %v; want ErrFrame", err)
		}
		var r Reply
		if err := Decode(frame, &r); err != nil && !errors.Is(err, ErrFrame) {
			t.Errorf("Decode = %v; want ErrFrame", err)
		}
	})
}
