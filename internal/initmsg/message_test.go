package initmsg

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fill sets every field of v, so that a field that fields.go forgets is noticed.
func fill(v reflect.Value, r *rand.Rand) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), r)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), r)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), r)
		}
	case reflect.String:
		v.SetString(string(rune('a' + r.IntN(26))))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(-1 - int64(r.IntN(1000)))
	case reflect.Uint8:
		v.SetUint(uint64(1 + r.IntN(255)))
	default:
		v.SetUint(uint64(1 + r.Uint32N(1<<31)))
	}
}

func full() *Message {
	m := new(Message)
	fill(reflect.ValueOf(m).Elem(), rand.New(rand.NewPCG(1, 2)))
	return m
}

func TestRoundTrip(t *testing.T) {
	for name, want := range map[string]*Message{"empty": {}, "full": full()} {
		data, err := Encode(want)
		if err != nil {
			t.Fatalf("Encode(%s) = %v", name, err)
		}
		got, err := Decode(data)
		if err != nil {
			t.Fatalf("Decode(%s) = %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
		if got, err = new(Space).Decode(data); err != nil {
			t.Fatalf("Space.Decode(%s) = %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s, in a space: -want +got\n%s", name, diff)
		}
	}
}

// TestSpaceIsTooSmall: what has no room in a space is read all the same, and nothing is in two places.
func TestSpaceIsTooSmall(t *testing.T) {
	want := full()
	for n := range 40 {
		name := string(rune('A' + n))
		want.Mounts = append(want.Mounts, Mount{Target: name, Options: []string{name, name + "1", name + "2", name + "3", name + "4"}})
		want.Devices = append(want.Devices, Device{Path: name})
		want.Symlinks = append(want.Symlinks, Symlink{Path: name})
		want.Masked = append(want.Masked, name)
	}
	data, err := Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := new(Space).Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Mounts { // appending to one must not change another
		got.Mounts[i].Options = append(got.Mounts[i].Options, "more")
		want.Mounts[i].Options = append(want.Mounts[i].Options, "more")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestDecodeRefuses(t *testing.T) {
	data, err := Encode(full())
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if _, err := Decode(data[:n]); err == nil {
			t.Fatalf("Decode of the first %d bytes: want error", n)
		}
	}
	if _, err := Decode(append(bytes.Clone(data), 0)); err == nil {
		t.Error("Decode with a byte too many: want error")
	}
	data[0]++
	if _, err := Decode(data); err == nil {
		t.Error("Decode of another version: want error")
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []*Message{{}, full()} {
		data, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(m)
		if err != nil {
			t.Fatalf("Encode of a decoded message: %v", err)
		}
		m2, err := Decode(again)
		if err != nil {
			t.Fatalf("Decode of an encoded message: %v", err)
		}
		if diff := cmp.Diff(m, m2); diff != "" {
			t.Errorf("second round differs:\n%s", diff)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	data, err := Encode(full())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzForkRequest(f *testing.F) {
	f.Add((&ForkRequest{CloneFlags: 1 << 33, Files: 7, Cgroup: true, PIDNamespace: true}).Append(nil))
	f.Add((&ForkRequest{Files: ServerFloor}).Append(nil))
	f.Add((&ForkRequest{Files: 1, Standby: true}).Append(nil))
	f.Add([]byte{Version})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeForkRequest(data)
		if err != nil {
			return
		}
		if r.Descriptors() > ServerFloor {
			t.Errorf("%d descriptors; want at most %d", r.Descriptors(), ServerFloor)
		}
		if again := r.Append(nil); string(again) != string(data) {
			t.Errorf("Append = %x; want %x", again, data)
		}
	})
}
