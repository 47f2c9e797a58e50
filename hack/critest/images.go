package main

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// The registries that the suite names; the stand-in answers for each.
var registries = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io"}

// Where cri-tools keeps its own images (pkg/validate/consts.go), and Kubernetes those of its tests.
const (
	criTools = "k8s-staging-cri-tools/"
	e2e      = "e2e-test-images/"
)

// pgrep is missing in Debian's busybox. It matches the process's name, as pgrep does.
const pgrep = `#!/bin/sh
for p in /proc/[0-9]*; do
	{ read -r name <$p/comm; } 2>/dev/null || continue
	case $name in *"$1"*) echo "${p#/proc/}"; found=1 ;; esac
done
[ "$found" ]
`

const nginxConf = `user www-data;
pid /var/run/nginx.pid;
error_log /dev/stderr;
events {}
http {
	access_log off;
	server {
		listen %d;
		root /usr/share/nginx/html;
	}
}
`

// imageBuilder makes the stand-ins from Debian's packages.
type imageBuilder struct {
	server     *registry.Server
	debs       string // folder with the packages
	nonewprivs string // the program
	base       registry.Layer
}

// busybox is the root file system of all images. Its shell runs programs by their path, not its own applets, as
// the upstream image's does: a specification masks /bin/ls. Applets are hard links there for the same reason.
func (b *imageBuilder) busybox() error {
	t := tree{}
	for _, d := range []string{"bin", "etc", "home", "usr/bin", "usr/sbin", "run", "var/log", "var/www", "lib", "mnt"} {
		t.dir(d, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.symlink("var/run", "../run")
	for _, pkg := range []struct {
		name string
		keep func(string) string
	}{{"busybox", only("bin/busybox", "bin/busybox")}, {"util-linux", only("usr/bin/ipcs", "usr/bin/ipcs")}, {"libc6", libraries}} {
		if err := t.unpack(b.debs, pkg.name, pkg.keep); err != nil {
			return err
		}
	}
	applets, err := b.applets(t["bin/busybox"].body)
	if err != nil {
		return err
	}
	for _, a := range applets {
		if a != "busybox" {
			t.link("bin/"+a, "bin/busybox")
		}
	}
	t.file("usr/bin/pgrep", pgrep, 0o755)
	t.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"+
		"www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n", 0o644)
	t.file("etc/group", "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n", 0o644)
	b.base = t.layer()
	return nil
}

// applets asks the program what it can do.
func (b *imageBuilder) applets(program string) ([]string, error) {
	dir, err := os.MkdirTemp("", "busybox-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "busybox")
	if err := os.WriteFile(path, []byte(program), 0o755); err != nil {
		return nil, err
	}
	out, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// layer sorts the tree such that links come after what they link to.
func (t tree) layer() registry.Layer {
	names := make([]string, 0, len(t))
	for n := range t {
		names = append(names, n)
	}
	rank := func(name string) int {
		switch t[name].header.Typeflag {
		case tar.TypeDir:
			return 0
		case tar.TypeLink:
			return 2
		}
		return 1
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	headers, bodies := make([]tar.Header, len(names)), make([]string, len(names))
	for i, n := range names {
		headers[i], bodies[i] = t[n].header, t[n].body
	}
	return registry.Entries(headers, bodies)
}

// add stores an image of the base and what more says.
func (b *imageBuilder) add(repo, tag string, config ocispec.ImageConfig, more tree) error {
	layers := []registry.Layer{b.base}
	if len(more) > 0 {
		layers = append(layers, more.layer())
	}
	config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if len(config.Cmd)+len(config.Entrypoint) == 0 {
		config.Cmd = []string{"sh"}
	}
	if _, err := b.server.AddImage(repo, tag, registry.Image{Layers: layers, Config: config}); err != nil {
		return fmt.Errorf("image %s:%s: %w", repo, tag, err)
	}
	return nil
}

func marker(name string) tree {
	t := tree{}
	t.file(name, "", 0o644)
	return t
}

// nginx is Debian's, with the libraries that it needs beside libc.
func (b *imageBuilder) nginx(port int) (tree, error) {
	t := tree{}
	for _, lib := range []string{"libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"} {
		if err := t.unpack(b.debs, lib, libraries); err != nil {
			return nil, err
		}
	}
	if err := t.unpack(b.debs, "nginx", only("usr/sbin/nginx", "usr/sbin/nginx")); err != nil {
		return nil, err
	}
	for _, d := range []string{"var/lib/nginx", "var/log/nginx", "usr/share/nginx/modules"} {
		t.dir(d, 0o755)
	}
	t.file("etc/nginx/nginx.conf", fmt.Sprintf(nginxConf, port), 0o644)
	t.file("usr/share/nginx/html/index.html", "<h1>Welcome to nginx!</h1>\n", 0o644)
	return t, nil
}

// all stores every image that the suite names, but the one that it pins by upstream's digest.
func (b *imageBuilder) all() error {
	if err := b.busybox(); err != nil {
		return err
	}
	users := map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"}
	for name, user := range users {
		if err := b.add(criTools+"test-image-user-"+name, "latest", ocispec.ImageConfig{User: user}, nil); err != nil {
			return err
		}
	}
	for _, i := range []struct{ repo, tag, file string }{
		{"library/busybox", "latest", ""}, {e2e + "busybox", "1.29-2", ""},
		{criTools + "test-image-1", "latest", "test-image-1"}, {criTools + "test-image-2", "latest", "test-image-2"},
		{criTools + "test-image-3", "latest", "test-image-3"}, {criTools + "test-image-latest", "latest", "test-image-latest"},
		{criTools + "test-image-tags", "1", "same-image"}, {criTools + "test-image-tags", "2", "same-image"},
		{criTools + "test-image-tags", "3", "same-image"},
		{criTools + "test-image-tag", "test", "test"}, {criTools + "test-image-tag", "all", "all"},
	} {
		var more tree
		if i.file != "" {
			more = marker(i.file)
		}
		if err := b.add(i.repo, i.tag, ocispec.ImageConfig{}, more); err != nil {
			return err
		}
	}
	return b.servers()
}

// servers stores the images that run something of their own.
func (b *imageBuilder) servers() error {
	group := tree{}
	group.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n", 0o644)
	group.file("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n", 0o644)

	httpd := tree{}
	httpd.file("var/www/index.html", "It works!\n", 0o644)

	program, err := os.ReadFile(b.nonewprivs)
	if err != nil {
		return err
	}
	setuid := tree{}
	setuid.file("usr/bin/nonewprivs", string(program), 0o4755)

	nginx, err := b.nginx(80)
	if err != nil {
		return err
	}
	hostnet, err := b.nginx(12003)
	if err != nil {
		return err
	}
	foreground := ocispec.ImageConfig{Cmd: []string{"nginx", "-g", "daemon off;"}}
	for _, i := range []struct {
		repo, tag string
		config    ocispec.ImageConfig
		more      tree
	}{
		{"pause", "3.9", ocispec.ImageConfig{Entrypoint: []string{"sleep", "infinity"}}, marker("pause")},
		{criTools + "test-image-predefined-group", "latest", ocispec.ImageConfig{User: "1000"}, group},
		{criTools + "hostnet-nginx-" + runtime.GOARCH, "latest", foreground, hostnet},
		{e2e + "nginx", "1.14-2", foreground, nginx},
		{e2e + "httpd", "2.4.39-4", ocispec.ImageConfig{
			Cmd: []string{"sh", "-c", "echo httpd serves /var/www; exec httpd -f -p 80 -h /var/www"}}, httpd},
		{e2e + "nonewprivs", "1.3", ocispec.ImageConfig{Entrypoint: []string{"/usr/bin/nonewprivs"}}, setuid},
	} {
		if err := b.add(i.repo, i.tag, i.config, i.more); err != nil {
			return err
		}
	}
	return nil
}

// mirrors writes a hosts.toml for each registry that sends the daemon to addr.
func mirrors(dir, addr string) error {
	for _, r := range registries {
		if err := os.MkdirAll(filepath.Join(dir, r), 0o755); err != nil {
			return err
		}
		text := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", addr)
		if err := os.WriteFile(filepath.Join(dir, r, "hosts.toml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
