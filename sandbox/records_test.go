package sandbox

import (
	"os"
	"strings"
	"testing"
)

func podRecords(t *testing.T) records[Pod] {
	t.Helper()
	r := records[Pod]{dir: t.TempDir()}
	return r
}

func loadPods(t *testing.T, r records[Pod]) ([]*Pod, []BadRecord) {
	t.Helper()
	all, bad, err := r.load(func(p *Pod) string { return p.ID })
	if err != nil {
		t.Fatal(err)
	}
	return all, bad
}

// The last whole state counts, whatever a crash left behind it.
func TestRecordTorn(t *testing.T) {
	for name, tail := range map[string]string{
		"nothing": "", "half a line": `{"id":"a","why":"lat`, "zeros": strings.Repeat("\x00", 100), "newlines": "\n\n", "other object": `{"id":"b"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := podRecords(t)
			must(t, r.create("a", &Pod{ID: "a", Why: "first"}))
			must(t, r.save("a", &Pod{ID: "a", Why: "second"}))
			f, err := os.OpenFile(r.path("a"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteString(tail)
			f.Close()
			all, bad := loadPods(t, r)
			if len(all) != 1 || len(bad) != 0 || all[0].Why != "second" {
				t.Fatalf("load = %+v, %v; want the second state", all, bad)
			}
			must(t, r.save("a", &Pod{ID: "a", Why: "third"}))
			if all, _ := loadPods(t, r); len(all) != 1 || all[0].Why != "third" {
				t.Errorf("after another save: %+v; want the third state", all)
			}
		})
	}
}

// A save that comes after the removal does not bring the record back.
func TestRecordLateSave(t *testing.T) {
	r := podRecords(t)
	must(t, r.create("a", &Pod{ID: "a"}))
	must(t, r.remove("a"))
	must(t, r.save("a", &Pod{ID: "a"}))
	if all, bad := loadPods(t, r); len(all)+len(bad) != 0 {
		t.Errorf("load = %v, %v; want nothing", all, bad)
	}
}

// A torn end behind the only whole line does not spoil the next one.
func TestRecordTornAfterOneLine(t *testing.T) {
	r := podRecords(t)
	must(t, os.WriteFile(r.path("a"), []byte("{\"id\":\"a\"}\n{\"id\":"), 0o600))
	loadPods(t, r)
	must(t, r.save("a", &Pod{ID: "a", Why: "next"}))
	if all, bad := loadPods(t, r); len(all) != 1 || len(bad) != 0 || all[0].Why != "next" {
		t.Errorf("load = %+v, %v; want the next state", all, bad)
	}
}

func TestRecordBad(t *testing.T) {
	r := podRecords(t)
	for name, content := range map[string]string{"empty": "", "garbage": "{", "other": `{"id":"x"}`} {
		if err := os.WriteFile(r.path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, bad := loadPods(t, r)
	if len(all) != 0 || len(bad) != 3 {
		t.Fatalf("load = %v, %v; want three bad records", all, bad)
	}
	for _, b := range bad {
		if _, err := os.Stat(b.Path); err != nil {
			t.Errorf("bad record was not left alone: %v", err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"a"}`))
	f.Add([]byte("{\"id\":\"a\"}\n{\"id\":"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := records[Pod]{}
		p, err := r.decode(data, "a", func(p *Pod) string { return p.ID })
		if (p == nil) == (err == nil) {
			t.Errorf("decode = %v, %v", p, err)
		}
	})
}
