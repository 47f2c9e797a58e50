package criu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// RestoreOptions are those of a restore. Root must be a mount point that criu sees.
type RestoreOptions struct {
	Options
	// Stdio are the container's standard streams.
	Stdio [3]*os.File
	// EnterGroup moves the new criu into the container's control groups: what it restores starts there.
	EnterGroup func(pid int) error
	// Terminal takes the master of the container's terminal, if it has one.
	Terminal func(master *os.File)
	// Sources are host paths by the destination of a bind mount, where they are not the specification's own.
	Sources map[string]string
	// Restored hears of the first process once it is there, while it is stopped still. An error undoes the restore.
	Restored func(pid int) error
	// Resuming hears of it once all processes have their rights again, while they are stopped still. An error is Restore's,
	// but criu lets them go on: the callee has to end them first.
	Resuming func(pid int) error
	// Start runs criu as another's child, with the standard streams; nil is as this process's.
	Start Start
}

// Start runs criu swrk: socket becomes its descriptor 3, files those from 4 on.
type Start func(program string, socket *os.File, files []*os.File) (*Process, error)

// Process is a criu that runs.
type Process struct {
	PID  int
	Wait func() error // returns once it has ended
	Kill func()
}

// Restore brings the processes of a container back and returns the first one's ID: a child of the process that runs criu.
func (t *Tool) Restore(ctx context.Context, o RestoreOptions) (pid int, err error) {
	if _, err := t.Check(ctx); err != nil {
		return 0, err
	}
	if err := CheckSpec(o.Spec); err != nil {
		return 0, err
	}
	program, err := t.Path()
	if err != nil {
		return 0, err
	}
	yes, log := true, RestoreLog
	opts := &rpc.CriuOpts{
		Root: &o.Root, LogFile: &log, EvasiveDevices: &yes, RstSibling: &yes, NotifyScripts: &yes,
	}
	if o.LSMProfile != "" {
		opts.LsmProfile = &o.LSMProfile
	}
	files, err := o.open(opts)
	if err != nil {
		return 0, err
	}
	defer closeAll(files)
	passed, err := o.namespaces(opts)
	defer closeAll(passed)
	if err != nil {
		return 0, err
	}
	o.mounts(opts)
	if err := o.streams(opts); err != nil {
		return 0, err
	}
	start := o.Start
	if start == nil {
		start = local(o.Stdio)
	}
	s, err := open(program, start, passed)
	if err != nil {
		return 0, &UnavailableError{Missing: program, Err: err}
	}
	if o.EnterGroup != nil {
		if err := o.EnterGroup(s.PID); err != nil {
			s.Kill()
			return 0, errors.Join(err, s.close(ctx))
		}
		if err := ownGroups(s.PID, opts); err != nil {
			s.Kill()
			return 0, errors.Join(err, s.close(ctx))
		}
	}
	kind := rpc.CriuReqType_RESTORE
	var refused error
	_, err = s.call(ctx, &rpc.CriuReq{Type: &kind, Opts: opts}, func(script string, p int, files []*os.File) error {
		switch {
		case script == "pre-resume" && pid != 0 && o.Resuming != nil:
			closeAll(files)
			if refused = o.Resuming(pid); refused != nil {
				return refused
			}
		case script == "post-restore":
			pid = p
			if o.Restored != nil {
				return o.Restored(p)
			}
		case script == "orphan-pts-master" && len(files) == 1 && o.Terminal != nil:
			master, err := sys.Pollable(files[0])
			if err == nil {
				o.Terminal(master)
			}
			return err
		default:
			closeAll(files)
		}
		return nil
	})
	err = errors.Join(err, s.close(ctx))
	if refused != nil { // what criu says of processes that were killed under it explains nothing
		return 0, refused
	}
	if err == nil && pid == 0 {
		err = errors.New("criu: it has not said what it restored")
	}
	return pid, withLog(err, o.logs(), RestoreLog)
}

// namespaces has criu join those that the specification names a path of.
func (o *RestoreOptions) namespaces(opts *rpc.CriuOpts) (files []*os.File, err error) {
	if o.Spec.Linux == nil {
		return nil, nil
	}
	for _, ns := range o.Spec.Linux.Namespaces {
		if ns.Path == "" {
			continue
		}
		if key := externalNamespace(ns.Type); key != "" {
			f, err := os.Open(ns.Path)
			if err != nil {
				return files, fmt.Errorf("linux.namespaces: %s: %w", ns.Type, err)
			}
			opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: &key, Fd: new(int32(firstFile + len(files)))})
			files = append(files, f)
			continue
		}
		opts.JoinNs = append(opts.JoinNs, &rpc.JoinNamespace{Ns: new(namespaceNames[ns.Type]), NsFile: new(ns.Path)})
	}
	return files, nil
}

// mounts says where the binds of the specification come from now.
func (o *RestoreOptions) mounts(opts *rpc.CriuOpts) {
	for _, m := range o.Spec.Mounts {
		if !isBind(&m) {
			continue
		}
		at := path.Clean(m.Destination)
		from := m.Source
		if s := o.Sources[at]; s != "" {
			from = s
		}
		opts.External = append(opts.External, "mnt["+at+"]:"+from)
	}
	if o.Spec.Linux != nil && len(o.Spec.Linux.MaskedPaths) > 0 {
		opts.External = append(opts.External, "mnt["+nullDevice+"]:"+nullDevice)
	}
}

// streams puts the new standard streams in the places of the old ones. They are criu's own.
func (o *RestoreOptions) streams(opts *rpc.CriuOpts) error {
	data, err := os.ReadFile(filepath.Join(o.Images, DescriptorsFile))
	if err != nil {
		return err
	}
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return fmt.Errorf("%s: %w", DescriptorsFile, err)
	}
	if len(names) > 3 {
		return fmt.Errorf("%s: %d standard streams", DescriptorsFile, len(names))
	}
	for i, name := range names {
		if strings.HasPrefix(name, "pipe:[") || strings.HasPrefix(name, "file[") {
			opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: &name, Fd: new(int32(i))})
		}
	}
	return nil
}

// ownGroups tells criu which control groups it is in: those of the container, whatever the dumped ones were called.
func ownGroups(pid int, opts *rpc.CriuOpts) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		opts.CgRoot = append(opts.CgRoot, &rpc.CgroupRoot{Ctrl: new(f[1]), Path: new(f[2])})
	}
	return nil
}
