package image

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"User":"1","Volumes":{"/v":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:../../x"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseConfig(raw)
		if err != nil {
			return
		}
		for _, d := range c.RootFS.DiffIDs {
			if d.Validate() != nil || strings.ContainsAny(d.Encoded(), "/.") {
				t.Errorf("parseConfig took diff ID %q", d)
			}
		}
	})
}

// FuzzRegistrySaid: what a registry says is short, and whole characters.
func FuzzRegistrySaid(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no"}]}`))
	f.Add([]byte(`{"errors":[{},{},{},{},{}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if s := registrySaid(body); utf8.RuneCountInString(s) > 4*(64+200+10) {
			t.Errorf("registrySaid = %d bytes", len(s))
		}
	})
}

// FuzzReference: a name that is taken is taken again as what it became.
func FuzzReference(f *testing.F) {
	for _, name := range []string{"busybox", "a.b:5000/c/d:e@sha256:" + strings.Repeat("0", 64), "../x", "a/../b", "[::1]:5/x", "A", "localhost/x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r, err := parseReference(name)
		if err != nil {
			return
		}
		again, err := parseReference(r.String())
		if err != nil || again.String() != r.String() || strings.Contains(r.String(), "..") {
			t.Errorf("parseReference(%q) = %s, then %v, %v", name, r, again, err)
		}
	})
}
