package cgroupfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadOOMKills(t *testing.T) {
	for _, tc := range []struct {
		name, content string
		want          uint64
		wantErr       bool
	}{
		{"v2", "low 0\nhigh 3\nmax 9\noom 2\noom_kill 2\noom_group_kill 1\n", 2, false},
		{"v1", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7, false},
		{"before 4.13", "oom_kill_disable 0\nunder_oom 0\n", 0, true},
		{"no number", "oom_kill x\n", 0, true},
		{"empty", "", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(p, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadOOMKills(p)
			if got != tc.want || (err != nil) != tc.wantErr {
				t.Errorf("ReadOOMKills(%q) = %d, %v; want %d, error %t", tc.content, got, err, tc.want, tc.wantErr)
			}
		})
	}
	if _, err := ReadOOMKills(filepath.Join(t.TempDir(), "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadOOMKills(gone) = %v; want not exist", err)
	}
}

func TestUint(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, "max\n": Max, " 42\n": 42, "18446744073709551615": Max} {
		if got, ok := Uint([]byte(in)); !ok || got != want {
			t.Errorf("Uint(%q) = %d, %t; want %d", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "-1", "1 2", "18446744073709551616", "0x1", "Max"} {
		if got, ok := Uint([]byte(in)); ok {
			t.Errorf("Uint(%q) = %d; want not ok", in, got)
		}
	}
}

func TestEach(t *testing.T) {
	got := map[string]uint64{}
	Each([]byte("a 1\nbad\nb max\nc x\n\nd 4"), func(k []byte, v uint64) { got[string(k)] = v })
	if diff := cmp.Diff(map[string]uint64{"a": 1, "b": Max, "d": 4}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzValue(f *testing.F) {
	f.Add([]byte("low 0\noom_kill 2\n"), "oom_kill")
	f.Add([]byte("oom_kill 1\noom_kill 2"), "oom_kill")
	f.Add([]byte("\n \nmax max"), "max")
	f.Fuzz(func(t *testing.T, data []byte, key string) {
		v, ok := Value(data, key)
		seen, first := false, uint64(0)
		Each(data, func(k []byte, n uint64) {
			if string(k) == key && !seen {
				seen, first = true, n
			}
		})
		if ok && (!seen || first != v) {
			t.Errorf("Value(%q, %q) = %d; Each says %d, %t", data, key, v, first, seen)
		}
		Lines(data, func(line []byte) {
			if len(line) == 0 {
				t.Error("empty line passed on")
			}
		})
	})
}
