package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// tree is what a layer is made of, by path without a leading slash.
type tree map[string]entry

type entry struct {
	header tar.Header
	body   string
}

func (t tree) file(name, body string, mode int64) {
	t[name] = entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}, body}
}

func (t tree) link(name, target string) {
	t[name] = entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o755}, ""}
}

func (t tree) symlink(name, target string) {
	t[name] = entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

func (t tree) dir(name string, mode int64) {
	t[name] = entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode}, ""}
}

// unpack takes those files of a Debian package that keep wants, under the name that it gives ("" for no).
func (t tree) unpack(debs, pkg string, keep func(name string) string) error {
	found, err := filepath.Glob(filepath.Join(debs, pkg+"_*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("package %s in %s: want one file, have %q", pkg, debs, found)
	}
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", found[0])
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	kept := 0
	err = func() error {
		for r := tar.NewReader(out); ; {
			h, err := r.Next()
			if err == io.EOF {
				_, err := io.Copy(io.Discard, out)
				return err
			}
			if err != nil {
				return err
			}
			name := keep(path.Clean(h.Name))
			if name == "" || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeSymlink {
				continue
			}
			body, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			t[name] = entry{tar.Header{Name: name, Typeflag: h.Typeflag, Mode: h.Mode & 0o777, Linkname: h.Linkname}, string(body)}
			kept++
		}
	}()
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w", found[0], err)
	}
	if kept == 0 {
		return fmt.Errorf("package %s has none of the files that are wanted of it", found[0])
	}
	return nil
}

// libraries keeps the shared libraries of a package where the dynamic linker looks, and the linker.
func libraries(name string) string {
	dir, base := path.Split(name)
	switch dir = strings.TrimPrefix(dir, "usr/"); {
	case dir == "lib64/", strings.HasPrefix(dir, "lib/") && strings.Count(dir, "/") == 2 && strings.Contains(base, ".so"):
		return dir + base
	}
	return ""
}

// only keeps one file, under the name as.
func only(name, as string) func(string) string {
	return func(n string) string {
		if n == name {
			return as
		}
		return ""
	}
}
