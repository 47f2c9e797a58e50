package criu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Files in a folder of images beside criu's own.
const (
	// DescriptorsFile names the standard streams of a dumped process, as runc does.
	DescriptorsFile = "descriptors.json"
	DumpLog         = "dump.log"
	RestoreLog      = "restore.log"
)

// Options are those of a dump and of a restore.
type Options struct {
	Spec   *specs.Spec
	Images string // folder for the images; it is made if it is missing
	Work   string // folder for logs and statistics; "" is Images
	// Root is where the container's root file system is on the host.
	Root string

	// TCPClose restores established connections as closed ones.
	TCPClose bool

	TCPEstablished, ExtUnixSockets, ShellJob, FileLocks, AutoDedup, LazyPages bool
	// ManageCgroups is criu's mode: "" (its default, soft), soft, full, strict or ignore.
	ManageCgroups string
	LSMProfile    string // on restore, for another one than at the dump
}

// DumpOptions are those of a dump.
type DumpOptions struct {
	Options
	PID          int
	LeaveRunning bool
	PreDump      bool
	ParentPath   string // images of a pre-dump, from Images
	// Freezer is the cgroup directory by which criu stops the processes; "" is by ptrace.
	Freezer string
}

// logLevel is criu's for debugging: what fails is explained by what went before it.
const logLevel = 4

var cgroupModes = map[string]rpc.CriuCgMode{
	"": rpc.CriuCgMode_DEFAULT, "soft": rpc.CriuCgMode_SOFT, "full": rpc.CriuCgMode_FULL,
	"strict": rpc.CriuCgMode_STRICT, "ignore": rpc.CriuCgMode_IGNORE,
}

// CheckSpec refuses what criu cannot do.
func CheckSpec(s *specs.Spec) error {
	if s.Linux == nil {
		return nil
	}
	if len(s.Linux.NetDevices) > 0 {
		return fmt.Errorf("a container with network devices of the host: %w by criu", errors.ErrUnsupported)
	}
	if !slices.ContainsFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.MountNamespace }) {
		return fmt.Errorf("a container in the host's mount namespace: %w by criu", errors.ErrUnsupported)
	}
	for _, ns := range s.Linux.Namespaces {
		switch {
		case ns.Type == specs.UserNamespace:
			return fmt.Errorf("a container in a user namespace: %w by criu", errors.ErrUnsupported)
		case ns.Type == specs.CgroupNamespace && ns.Path != "", ns.Type == specs.TimeNamespace && ns.Path != "",
			ns.Type == specs.MountNamespace && ns.Path != "":
			return fmt.Errorf("a container that joins a %s namespace: %w by criu", ns.Type, errors.ErrUnsupported)
		}
	}
	return nil
}

// open makes and opens the folders of a request. criu finds them by this process's descriptors.
func (o *Options) open(opts *rpc.CriuOpts) (files []*os.File, err error) {
	mode, ok := cgroupModes[o.ManageCgroups]
	if !ok {
		return nil, fmt.Errorf("manage-cgroups-mode: %q is not soft, full, strict or ignore", o.ManageCgroups)
	}
	yes := true
	opts.ManageCgroups, opts.ManageCgroupsMode = &yes, &mode
	dirs := []struct {
		path string
		to   **int32
	}{{o.Images, &opts.ImagesDirFd}, {o.Work, &opts.WorkDirFd}}
	for _, d := range dirs {
		if d.path == "" {
			continue
		}
		if err := os.MkdirAll(d.path, 0o700); err != nil {
			closeAll(files)
			return nil, err
		}
		f, err := os.Open(d.path)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
		*d.to = new(int32(f.Fd()))
	}
	opts.LogLevel = new(int32(logLevel))
	if o.TCPClose {
		opts.TcpClose = &yes
	}
	opts.ShellJob, opts.TcpEstablished, opts.ExtUnixSk = &o.ShellJob, &o.TCPEstablished, &o.ExtUnixSockets
	opts.FileLocks, opts.AutoDedup, opts.LazyPages, opts.OrphanPtsMaster = &o.FileLocks, &o.AutoDedup, &o.LazyPages, &yes
	return files, nil
}

func (o *Options) logs() string {
	if o.Work != "" {
		return o.Work
	}
	return o.Images
}

// Dump writes the state of a container's processes. They are killed by it unless LeaveRunning; after an error they run.
func (t *Tool) Dump(ctx context.Context, o DumpOptions) error {
	if _, err := t.Check(ctx); err != nil {
		return err
	}
	if err := CheckSpec(o.Spec); err != nil {
		return err
	}
	program, err := t.Path()
	if err != nil {
		return err
	}
	yes, pid, log := true, int32(o.PID), DumpLog
	opts := &rpc.CriuOpts{Pid: &pid, LeaveRunning: &o.LeaveRunning, LogFile: &log, LinkRemap: &yes, NotifyScripts: &yes}
	files, err := o.open(opts)
	if err != nil {
		return err
	}
	defer closeAll(files)
	kind := rpc.CriuReqType_DUMP
	if o.PreDump {
		kind = rpc.CriuReqType_PRE_DUMP
		opts.TrackMem = &yes
	}
	if o.ParentPath != "" {
		opts.ParentImg, opts.TrackMem = &o.ParentPath, &yes
	}
	if o.Freezer != "" {
		opts.FreezeCgroup = &o.Freezer
	}
	root := "/proc/" + strconv.Itoa(o.PID) + "/root"
	opts.Root = &root
	if err := o.externals(opts); err != nil {
		return err
	}
	s, err := open(program, local([3]*os.File{}), nil)
	if err != nil {
		return &UnavailableError{Missing: program, Err: err}
	}
	_, err = s.call(ctx, &rpc.CriuReq{Type: &kind, Opts: opts}, nil)
	return withLog(errors.Join(err, s.close(ctx)), o.logs(), DumpLog)
}

// externals names what is not the container's own: namespaces, mounts, standard streams. A restore says by the same
// names what is to be in their places.
func (o *DumpOptions) externals(opts *rpc.CriuOpts) error {
	if o.Spec.Linux != nil {
		for _, ns := range o.Spec.Linux.Namespaces {
			key := externalNamespace(ns.Type)
			if ns.Path == "" || key == "" {
				continue
			}
			var st syscall.Stat_t
			kind := namespaceNames[ns.Type]
			if err := syscall.Stat("/proc/"+strconv.Itoa(o.PID)+"/ns/"+kind, &st); err != nil {
				return err
			}
			opts.External = append(opts.External, fmt.Sprintf("%s[%d]:%s", kind, st.Ino, key))
		}
	}
	if o.PreDump {
		return nil
	}
	mounts, err := o.externalMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		opts.External = append(opts.External, "mnt["+m.at+"]:"+m.name)
	}
	streams, err := o.streams(opts)
	if err != nil {
		return err
	}
	data, err := json.Marshal(streams)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.Images, DescriptorsFile), data, 0o600)
}

// namespaceNames are those that /proc and criu have.
var namespaceNames = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net", specs.PIDNamespace: "pid", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
}

// externalNamespace is the name of a joined namespace of which criu dumps nothing; "" for those that it enters by itself.
func externalNamespace(t specs.LinuxNamespaceType) string {
	switch t {
	case specs.NetworkNamespace:
		return "extRootNetNS"
	case specs.PIDNamespace:
		return "extRootPidNS"
	}
	return ""
}

// mount is one that is not the container's own.
type mount struct {
	at   string // in the container
	name string // what a restore calls it
}

const nullDevice = "/dev/null"

// externalMounts finds where the binds of the specification are.
func (o *DumpOptions) externalMounts() ([]mount, error) {
	proc := "/proc/" + strconv.Itoa(o.PID)
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, err
	}
	byID, byPath := map[int]*mountinfo.Info{}, map[string]*mountinfo.Info{}
	for _, i := range infos {
		byID[i.ID], byPath[i.Mountpoint] = i, i
	}
	root, err := os.Open(proc + "/root")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var out []mount
	for _, m := range o.Spec.Mounts {
		if !isBind(&m) {
			continue
		}
		found, err := mountAt(root, m.Destination, byID)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if found == nil {
			return nil, fmt.Errorf("mount %s: there is none any more", m.Destination)
		}
		out = append(out, mount{found.Mountpoint, path.Clean(m.Destination)})
		// A recursive bind has brought its own.
		for _, i := range infos {
			if strings.HasPrefix(i.Mountpoint, found.Mountpoint+"/") && !o.named(i.Mountpoint) {
				rest := strings.TrimPrefix(i.Mountpoint, found.Mountpoint)
				out = append(out, mount{i.Mountpoint, path.Clean(m.Destination) + rest})
			}
		}
	}
	if o.Spec.Linux == nil {
		return out, nil
	}
	for _, p := range o.Spec.Linux.MaskedPaths {
		if i := byPath[path.Clean(p)]; i != nil && i.FSType != "tmpfs" || i != nil && i.Root != "/" {
			out = append(out, mount{i.Mountpoint, nullDevice})
		}
	}
	return out, nil
}

// named says whether the specification has a mount of its own there.
func (o *DumpOptions) named(at string) bool {
	return slices.ContainsFunc(o.Spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == at })
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// mountAt is the mount whose root name leads to, over the container's symbolic links; nil where it is not a mount's root.
func mountAt(root *os.File, name string, byID map[int]*mountinfo.Info) (*mountinfo.Info, error) {
	f, err := sys.PathInRoot(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	id, err := mountID("/proc/self/fdinfo/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, err
	}
	found := byID[id]
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil || found == nil || strings.TrimSuffix(at, " (deleted)") != found.Mountpoint {
		return nil, err
	}
	return found, nil
}

// mountID reads the mount of an open file from its fdinfo.
func mountID(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("%s: no mnt_id", file)
}

// streams names the first process's standard streams. Those that are files of the host, as /dev/null is, become
// external; a pipe is known by its own name.
func (o *DumpOptions) streams(opts *rpc.CriuOpts) ([]string, error) {
	proc := "/proc/" + strconv.Itoa(o.PID)
	own, err := mountIDs(proc + "/mountinfo")
	if err != nil {
		return nil, err
	}
	names := make([]string, 3)
	for i := range names {
		fd := strconv.Itoa(i)
		link := proc + "/fd/" + fd
		to, err := os.Readlink(link)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has closed it
		}
		if err != nil {
			return nil, err
		}
		names[i] = to
		if !strings.HasPrefix(to, "/") {
			continue
		}
		id, err := mountID(proc + "/fdinfo/" + fd)
		if err != nil {
			return nil, err
		}
		if own[id] {
			continue
		}
		var st syscall.Stat_t
		if err := syscall.Stat(link, &st); err != nil {
			return nil, err
		}
		names[i] = fmt.Sprintf("file[%x:%x]", id, st.Ino)
		if !slices.Contains(opts.External, names[i]) {
			opts.External = append(opts.External, names[i])
		}
	}
	return names, nil
}

func mountIDs(file string) (map[int]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, err
	}
	ids := make(map[int]bool, len(infos))
	for _, i := range infos {
		ids[i.ID] = true
	}
	return ids, nil
}
