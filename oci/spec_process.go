package oci

import (
	"errors"
	"os"
	"path"
	"strings"
)

// defaultPath is what containerd and Docker give a process whose image names none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// args decides what is executed. CRI ContainerConfig.command replaces the image's entrypoint and its cmd;
// args alone replace its cmd.
func (b *builder) args() error {
	command, args := b.ctr.Command, b.ctr.Args
	if len(command) == 0 {
		// Docker writes an entrypoint that was taken back as [""].
		if e := b.Image.Entrypoint; len(e) != 1 || e[0] != "" {
			command = e
		}
		if len(args) == 0 {
			args = b.Image.Cmd
		}
	}
	all := make([]string, 0, len(command)+len(args))
	all = append(append(all, command...), args...)
	if len(all) == 0 {
		return fieldf("command", "nothing to run: no command, no args, and the image names no entrypoint and no cmd")
	}
	if all[0] == "" {
		return fieldf("command", "the program to run is the empty string")
	}
	for _, a := range all {
		if strings.IndexByte(a, 0) >= 0 {
			return fieldf("command", "NUL byte in %q", a)
		}
	}
	b.spec.Process.Args = all
	return b.cwd()
}

func (b *builder) cwd() error {
	cwd := b.ctr.WorkingDir
	if cwd == "" {
		cwd = b.Image.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	if strings.IndexByte(cwd, 0) >= 0 {
		return fieldf("working_dir", "NUL byte in %q", cwd)
	}
	// Docker takes a relative WORKDIR to be below "/".
	b.spec.Process.Cwd = path.Join("/", cwd)
	return nil
}

// env merges, the later winning in the earlier's place: defaults, the image's, the client's.
func (b *builder) env() error {
	hostname := b.Pod.Hostname
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	e := newEnvironment(8 + len(b.Image.Env) + len(b.ctr.Env))
	e.set(defaultPath)
	if b.ctr.TTY {
		e.set("TERM=xterm")
	}
	e.set("HOSTNAME=" + hostname)
	for _, kv := range b.Image.Env {
		if strings.IndexByte(kv, '=') > 0 && strings.IndexByte(kv, 0) < 0 {
			e.set(kv)
		}
	}
	for i, kv := range b.ctr.Env {
		if err := checkEnv(kv.Key, kv.Value); err != nil {
			return &FieldError{Field: index("envs", i), Err: err}
		}
		e.set(kv.Key + "=" + kv.Value)
	}
	if !e.has("HOME") {
		e.set("HOME=" + b.home())
	}
	b.spec.Process.Env = e.list
	return nil
}

func checkEnv(key, value string) error {
	switch {
	case key == "":
		return errors.New("no name")
	case strings.ContainsAny(key, "=\x00"):
		return errors.New("'=' or NUL byte in the name " + key)
	case strings.IndexByte(value, 0) >= 0:
		return errors.New("NUL byte in the value of " + key)
	}
	return nil
}

// environment is a list of KEY=VALUE without duplicates that keeps the order of first mention.
type environment struct {
	list  []string
	index map[string]int
}

func newEnvironment(n int) *environment {
	return &environment{list: make([]string, 0, n), index: make(map[string]int, n)}
}

func (e *environment) set(kv string) {
	key, _, _ := strings.Cut(kv, "=")
	if i, ok := e.index[key]; ok {
		e.list[i] = kv
		return
	}
	e.index[key] = len(e.list)
	e.list = append(e.list, kv)
}

func (e *environment) has(key string) bool {
	_, ok := e.index[key]
	return ok
}
