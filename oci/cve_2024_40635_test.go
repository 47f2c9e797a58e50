package oci

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// TestCVE_2024_40635 (and CVE-2026-46680, CVE-2016-3697): a user that is a number is that number or an error. An image whose
// database has a user of that name gains nothing: the kubelet has checked runAsNonRoot with the number.
func TestCVE_2024_40635(t *testing.T) {
	numbers := []string{"4294967295", "4294967296", "-1", "9223372036854775808", "99999999999999999999999", "+4294967296", "-99999999999999999999"}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd, group := "root:x:0:0::/root:/bin/sh\n1000:x:0:0::/:/bin/sh\n", "root:x:0:\n"
	for _, n := range numbers {
		passwd += n + ":x:0:0::/:/bin/sh\n"
		group += n + ":x:0:\n"
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	build := func(user string, sec workload.Security) (workload.User, error) {
		p := podParams(t)
		p.Root, p.Image.User, p.Container.Security = root, user, sec
		b, err := Build(t.Context(), testHost(), p)
		if err != nil {
			return workload.User{}, err
		}
		return b.User, nil
	}
	for _, n := range numbers {
		for _, user := range []string{n, "1000:" + n} {
			u, err := build(user, workload.Security{})
			if err == nil {
				t.Errorf("image user %q became %+v; want an error", user, u)
				continue
			}
			wantField(t, err, "image.user", "is not a user or group id")
		}
		_, err := build("", workload.Security{RunAsUsername: n})
		wantField(t, err, "security.run_as_username", "is not a user or group id")
	}
	for name, sec := range map[string]workload.Security{"1000": {}, "": {RunAsUser: ptr[int64](1000)}} {
		if u, err := build(name, sec); err != nil || u.UID != 1000 {
			t.Errorf("user 1000 of an image with a root of that name = %+v, %v; want 1000", u, err)
		}
	}
}
