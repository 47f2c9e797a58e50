// Package initmsg is the message that the low-level runtime hands to its init:
// everything a process needs from clone to execve, resolved in advance, so that
// the init decides nothing. It is a private format between two programs of one
// build; its first byte is the version.
package initmsg

import (
	"errors"
	"strconv"
)

// Version is the first byte of every encoded message.
const Version = 1

// Fixed descriptors of the init; files that the message refers to follow from FirstFile on.
const (
	FDMessage = 3 // the encoded message, read to its end
	FDSync    = 4 // errors and progress to the parent; closed by a successful execve
	FirstFile = 5
)

// Env is the environment to start the init with; the workload gets none of it. It
// is for the Go runtime: no collection in so short a life, no look at the cgroup's
// CPU limit, and no preemption signals, whose rt_sigreturn(2) a seccomp
// profile might forbid between its loading and execve.
func Env() []string {
	return []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}
}

// NoFile says that an optional file index is not set. Other values index the
// files handed over after FirstFile: descriptor FirstFile+n.
const NoFile = -1

// Mode is what the init is to become.
type Mode uint32

// Modes.
const (
	// ModeContainer sets up a root file system and executes the workload.
	ModeContainer Mode = iota
	// ModeExec joins a running container and executes another process in it.
	ModeExec
	// ModePodInit stays as PID 1 of a pod's shared PID namespace: it reaps, and ends on SIGTERM.
	ModePodInit
	// ModeServer stays and forks an init for each ForkRequest, so that these need no start of their own.
	ModeServer
)

// Namespace is one to join by descriptor or path; Path is opened in the host's mount namespace.
type Namespace struct {
	Type uint64 // a CLONE_NEW… flag
	Path string
	File int32 // or NoFile
}

// Mount is one mount below the new root, done in order with the new mount API.
type Mount struct {
	// FSType is the type for fsopen(2). Empty: a bind mount of Source or File.
	FSType string
	// Source is a host path for a bind mount, else the file system's source option.
	Source string
	// File is a detached mount (open_tree or fsmount) to be attached, or NoFile.
	File int32
	// IDMap is 1 and the index of a user namespace that a new file system's mount is mapped by; 0 is none.
	IDMap int32
	// Target is resolved inside the new root; missing parts are created.
	Target string
	// Recursive binds the tree below Source (rbind).
	Recursive bool
	// AttrSet and AttrClear are MOUNT_ATTR_… of mount_setattr(2) for this mount;
	// RecAttrSet and RecAttrClear apply to every mount below it too (rro, rnosuid, …).
	AttrSet, AttrClear, RecAttrSet, RecAttrClear uint64
	// Propagation is an MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, with MS_REC or not; 0 leaves it.
	Propagation uint64
	// Options are fsconfig(2) settings, "key" or "key=value".
	Options []string
	// TmpCopyUp fills a new tmpfs with what the image has at Target.
	TmpCopyUp bool
	// CreateMode is the mode of a target that has to be created.
	CreateMode uint32
	// Optional mounts that the kernel refuses (a missing controller, say) are left out.
	Optional bool
	// ReadonlyAtEnd makes the mount read-only once all mounts are done: until then it takes targets of others.
	ReadonlyAtEnd bool
	// NoFollow refuses a target whose last part is a symbolic link.
	NoFollow bool
	// Remount changes what is mounted at Target, in place of making a mount: attributes, and the file system's Options.
	Remount bool
	// IVersion has the file system count the changes of inodes (MS_I_VERSION), which only mount(2) can ask for.
	IVersion bool
}

// Device is a node to be made under the new root.
type Device struct {
	Path         string
	Mode         uint32 // type and permissions, as for mknod(2)
	Major, Minor uint32
	UID, GID     uint32
	// Bind binds the host's node of this path instead of mknod (user namespaces).
	Bind string
}

// Symlink is a link to be made under the new root, if nothing is there.
type Symlink struct{ Target, Path string }

// File is a file to be written into the new root before anything is mounted there; it replaces what the image has at
// Path, a symbolic link too.
type File struct {
	Path string
	Data []byte
}

// Rlimit is a resource limit: Resource is an RLIMIT_… number.
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

// Sysctl is written below /proc/sys through a private procfs handle. Name uses slashes.
type Sysctl struct{ Name, Value string }

// Capabilities are the five sets as bit masks of capability numbers.
type Capabilities struct{ Effective, Permitted, Inheritable, Bounding, Ambient uint64 }

// Scheduler is sched_setattr(2)'s arguments.
type Scheduler struct {
	Policy                    uint32
	Flags                     uint64
	Nice                      int32
	Priority                  uint32
	Runtime, Deadline, Period uint64
}

// Process is what is executed in the end, and with which rights.
type Process struct {
	Args []string
	Env  []string
	Cwd  string
	// CreateCwd makes a missing working directory.
	CreateCwd    bool
	UID, GID     uint32
	Groups       []uint32
	Umask        *uint32
	Caps         *Capabilities // nil keeps all
	NoNewPrivs   bool
	Rlimits      []Rlimit
	OOMScoreAdj  *int32
	Seccomp      []byte // struct sock_filter[], native byte order
	SeccompFlags uint32
	// SeccompListener sends the notify descriptor to this unix socket path, with SeccompState as JSON.
	SeccompListener string
	SeccompState    []byte
	AppArmor        string
	SELinux         string
	// Terminal: the init opens a terminal pair in the container's own devpts, sends the
	// master over the unix socket ConsoleFile, and makes the slave its stdio and controlling terminal.
	Terminal    bool
	ConsoleFile int32
	ConsoleRows uint32
	ConsoleCols uint32
	Scheduler   *Scheduler
	IOPriority  *uint32 // ioprio value of ioprio_set(2)
	Personality *uint32
	// KeepKeyring leaves the workload the session keyring of whoever started it.
	KeepKeyring bool
	Affinity    []uint64 // CPU mask words for sched_setaffinity(2); empty leaves it
	NUMAMode    *uint32  // set_mempolicy(2) mode with flags
	NUMAMask    []uint64
	// ExtraFiles files from index FirstExtra on become the workload's descriptors 3, 4, …
	FirstExtra int32
	ExtraFiles uint32
}

// HooksDue and HooksDone are the messages over Message.HookFile.
const (
	HooksDue  = "hooks"
	HooksDone = "done"
)

// Root is the new root file system. A pod init only uses Staging.
type Root struct {
	// File is a detached mount to become the root, or NoFile: Path is bound then.
	File int32
	Path string
	// Staging is an empty host directory on which the new root is put before
	// pivot_root(2); it is only seen inside the new mount namespace. In a user namespace it is the working directory.
	Staging string
	// Readonly makes the root read-only after everything below it was set up.
	Readonly bool
	// Propagation of the whole tree before anything is mounted (MS_SLAVE|MS_REC by default).
	Propagation uint64
	// FinalPropagation is rootfsPropagation of the spec, applied after the pivot; 0 leaves it.
	FinalPropagation uint64
	// NoPivot uses MS_MOVE and chroot, for a root on the initramfs.
	NoPivot bool
	// Detached keeps the root out of every mount namespace: the container's is another's, which is to see none of its
	// mounts and keep its own root.
	Detached bool
}

// Hook is an OCI hook that runs inside the container's namespaces, or just before the pivot.
type Hook struct {
	Path    string
	Args    []string
	Env     []string
	Timeout uint64 // seconds; 0 waits for ever
}

// Message is the whole instruction.
type Message struct {
	Mode Mode
	// UserNamespace says that this is a user namespace without rights over the host: host paths may be closed to the
	// init, so it is handed mounts and namespaces as files, and no new procfs can be had for each purpose.
	UserNamespace bool
	// CgroupTasks are files that the init writes "0" to with its main thread, before
	// anything else (cgroup v1; on v2 it was cloned into its group).
	CgroupTasks []string
	// Join are namespaces to enter, in order, before New ones are made.
	Join []Namespace
	// Unshare are CLONE_NEW… flags for unshare(2) after the cgroup was entered.
	Unshare    uint64
	Hostname   string
	Domainname string
	Sysctls    []Sysctl
	Root       *Root
	Files      []File
	Mounts     []Mount
	Devices    []Device
	Symlinks   []Symlink
	Masked     []string
	Readonly   []string
	// Hooks that the init itself runs; State is the OCI state on their standard input, a JSON object to which
	// the init adds status and pid.
	CreateContainerHooks []Hook
	StartContainerHooks  []Hook
	State                []byte
	// ExecRoot is the root of a container whose mount namespace has another one, for ModeExec; or nil.
	ExecRoot *int32
	// HookFile is a SOCK_SEQPACKET socket, or nil: before the createContainer hooks the init sends HooksDue over
	// it and waits for HooksDone, or for the text of what went wrong: whoever started it moves network devices and
	// runs the hooks of its own namespaces meanwhile.
	HookFile *int32
	// PIDFile is a PID namespace that nothing but the workload enters, or nil: the last thing the init does is to clone a child
	// into it that has all but execve(2) behind it. The file after it is a page of memory; the child's process ID is in
	// its first four bytes before the child runs. The init then ends, with the errno of the clone or of execve as its status.
	PIDFile *int32
	// StartFile is a FIFO (O_PATH), or NoFile: after everything is set up the init sends KindReady and opens the
	// FIFO for writing, which blocks until the other side reads: the gate between create and start. From then on
	// it reports over the FIFO. The workload's user must be allowed to write to it.
	StartFile int32
	Process   Process
}

// Encode returns the message as bytes.
func Encode(m *Message) ([]byte, error) {
	c := &codec{buf: make([]byte, 0, 4096)}
	c.buf = append(c.buf, Version)
	m.code(c)
	return c.buf, c.err
}

// decodeError is why a message cannot be read. It does without package fmt, whose
// initialisation (package os, mostly) would be part of every start of a container.
type decodeError struct{ cause error }

func (e *decodeError) Error() string { return "init message: " + e.cause.Error() }
func (e *decodeError) Unwrap() error { return e.cause }

// Space is memory for one message of the common size, in one piece: to a fresh fork of the init each page is a fault, and
// the heap would have it in a dozen places.
type Space struct {
	message  Message
	root     Root
	caps     Capabilities
	strings  [160]string
	mounts   [28]Mount
	devices  [8]Device
	symlinks [8]Symlink
}

// room is what of a Space is free; the zero value has none.
type room struct {
	root     *Root
	caps     *Capabilities
	strings  []string
	mounts   []Mount
	devices  []Device
	symlinks []Symlink
}

// Decode reads a message that Encode wrote. Its strings and byte slices are parts of data, which must not change any more.
func Decode(data []byte) (*Message, error) { return decode(data, new(Message), room{}) }

// Decode reads one message into s, which must be zero.
func (s *Space) Decode(data []byte) (*Message, error) {
	return decode(data, &s.message, room{&s.root, &s.caps, s.strings[:], s.mounts[:], s.devices[:], s.symlinks[:]})
}

func decode(data []byte, m *Message, in room) (*Message, error) {
	if len(data) == 0 {
		return nil, &decodeError{errShort}
	}
	if data[0] != Version {
		return nil, &decodeError{errors.New("version " + strconv.Itoa(int(data[0])) + ", want " + strconv.Itoa(Version))}
	}
	c := &codec{buf: data[1:], reading: true, room: in}
	m.code(c)
	if c.err != nil {
		return nil, &decodeError{c.err}
	}
	if len(c.buf) != 0 {
		return nil, &decodeError{errors.New(strconv.Itoa(len(c.buf)) + " bytes too many")}
	}
	return m, nil
}
