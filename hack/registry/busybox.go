package registry

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Busybox makes a layer that a shell runs in: the machine's own static busybox with all its applets, a user "app"
// (1000) in the groups "app" (1000) and "extra" (2000), /www/index.html, and a /tmp for all.
func Busybox() (Layer, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return Layer{}, fmt.Errorf("package busybox-static: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return Layer{}, err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return Layer{}, fmt.Errorf("%s --list: %w", path, err)
	}
	dir := func(name string, mode int64) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}
	}
	headers := []tar.Header{
		dir("bin/", 0o755), dir("etc/", 0o755), dir("root/", 0o700), dir("home/", 0o755), dir("www/", 0o755),
		dir("tmp/", 0o1777), dir("var/", 0o755), dir("run/", 0o755), dir("mnt/", 0o755),
		{Name: "home/app/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1000, Gid: 1000},
	}
	bodies := make([]string, len(headers))
	file := func(name, body string, mode int64) {
		headers = append(headers, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode})
		bodies = append(bodies, body)
	}
	file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644)
	file("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n", 0o644)
	file("www/index.html", "hello from a pod\n", 0o644)
	file("bin/busybox", string(program), 0o755)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			headers = append(headers, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
		}
	}
	return Entries(headers, bodies), nil
}

// AddBusybox stores Busybox as REPO:TAG, with a shell as its command.
func (s *Server) AddBusybox(repo, tag string) (Pushed, error) {
	l, err := Busybox()
	if err != nil {
		return Pushed{}, err
	}
	return s.AddImage(repo, tag, Image{Layers: []Layer{l}, Config: ocispec.ImageConfig{
		Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"},
	}})
}

// AddWeb stores an image as REPO:TAG that serves /www over HTTP on port 8080, as the user app.
func (s *Server) AddWeb(repo, tag string) (Pushed, error) {
	l, err := Busybox()
	if err != nil {
		return Pushed{}, err
	}
	return s.AddImage(repo, tag, Image{Layers: []Layer{l}, Config: ocispec.ImageConfig{
		Entrypoint: []string{"/bin/httpd", "-f", "-p", "8080"}, Cmd: []string{"-h", "/www"},
		Env: []string{"PATH=/bin"}, User: "app", ExposedPorts: map[string]struct{}{"8080/tcp": {}},
	}})
}
