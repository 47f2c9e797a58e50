// Command registry serves a directory as an OCI registry over plain HTTP, for development and demonstrations.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/hack/registry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:5000", "address to listen on; port 0 for any")
	root := flag.String("root", "", "directory to keep everything in (default: a temporary one)")
	auth := flag.String("auth", "", "authentication: basic, bearer, or empty for none")
	user := flag.String("user", "", "USER:PASSWORD, with --auth")
	var add []string
	flag.Func("add", "push a one-layer image first: `REPO:TAG=DIRECTORY`; may stand several times", func(v string) error {
		add = append(add, v)
		return nil
	})
	busybox := flag.String("busybox", "", "push an image of this machine's static busybox first: REPO:TAG")
	web := flag.String("web", "", "push an image of a web server on port 8080 first: REPO:TAG")
	flag.Parse()
	name, password, _ := strings.Cut(*user, ":")
	s, err := registry.New(registry.Options{Root: *root, Auth: registry.AuthKind(*auth), Username: name, Password: password})
	if err != nil {
		return err
	}
	defer s.Close()
	for _, spec := range add {
		if err := push(s, spec); err != nil {
			return fmt.Errorf("add %s: %w", spec, err)
		}
	}
	for ref, push := range map[string]func(repo, tag string) (registry.Pushed, error){*busybox: s.AddBusybox, *web: s.AddWeb} {
		if ref == "" {
			continue
		}
		repo, tag, ok := strings.Cut(ref, ":")
		if !ok {
			return fmt.Errorf("%s: want REPO:TAG", ref)
		}
		if _, err := push(repo, tag); err != nil {
			return fmt.Errorf("add %s: %w", ref, err)
		}
	}
	host, err := s.Listen(*listen)
	if err != nil {
		return err
	}
	fmt.Println(host)
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	<-c
	return nil
}

func push(s *registry.Server, spec string) error {
	ref, dir, ok := strings.Cut(spec, "=")
	i := strings.LastIndexByte(ref, ':')
	if !ok || i < 0 {
		return fmt.Errorf("want REPO:TAG=DIRECTORY")
	}
	l, err := registry.Dir(dir)
	if err != nil {
		return err
	}
	p, err := s.AddImage(ref[:i], ref[i+1:], registry.Image{Layers: []registry.Layer{l}})
	if err == nil {
		fmt.Println(ref, p.ID)
	}
	return err
}
