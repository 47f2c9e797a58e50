package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

func FuzzExitFile(f *testing.F) {
	f.Add([]byte(`{"id":"a","code":1}`))
	f.Add([]byte(`{"id":"../a"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &Manager{cfg: Config{State: t.TempDir()}}
		if err := os.MkdirAll(filepath.Dir(m.exitFile("a")), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.exitFile("a"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := m.readExit("a"); err == nil && (e == nil || e.ID != "a") {
			t.Errorf("readExit(%q) = %+v", data, e)
		}
	})
}
